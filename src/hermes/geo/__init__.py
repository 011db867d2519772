"""Where addresses are registered: databases (`databases`), and how they are brought (`update`)."""

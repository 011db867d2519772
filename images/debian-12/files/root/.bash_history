apt update
apt upgrade
apt install sudo vim curl rsync
visudo
adduser anna
usermod -aG sudo,adm anna
vi /etc/ssh/sshd_config
sshd -t && service ssh restart
ip a
ip route
cat /etc/resolv.conf
df -h
free -m
adduser deploy
usermod -aG www-data deploy
mkdir -p /opt/backup /srv/backup
vi /opt/backup/backup.sh
vi /opt/backup/backup.env
chmod 600 /opt/backup/backup.env
chmod +x /opt/backup/backup.sh
/opt/backup/backup.sh
ls -la /srv/backup
vi /etc/cron.d/backup
crontab -l
tail -f /var/log/syslog
last | head
grep Failed /var/log/auth.log | tail -20
grep Failed /var/log/auth.log | awk '{print $(NF-3)}' | sort | uniq -c | sort -rn | head
apt update && apt upgrade -y
apt autoremove
w
htop
ps aux --sort=-%mem | head
du -sh /srv/backup/*
rm /srv/backup/etc-20*-01.tar.gz
df -h
cat /var/log/backup.log
passwd
exit

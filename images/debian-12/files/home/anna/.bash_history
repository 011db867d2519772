sudo apt update
sudo apt upgrade
ls -la
cd /var/www/html
sudo -u deploy vi index.html
less /var/log/auth.log
sudo less /var/log/auth.log
vi notes.txt
scp anna@10.20.0.14:fotos/garten-*.jpg .
df -h
sudo /opt/backup/backup.sh
exit
uptime
cat notes.txt
sudo tail /var/log/backup.log
exit

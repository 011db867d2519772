#!/bin/sh
# Copy configuration and sites aside, then over to the storage box.
set -eu
. /opt/backup/backup.env

day=$(date +%Y%m%d)
for what in etc var/www; do
    tar -C / -czf "/srv/backup/$(echo $what | tr / -)-$day.tar.gz" "$what"
done
find /srv/backup -name '*.tar.gz' -mtime +28 -delete
RSYNC_PASSWORD=$STORAGE_PASSWORD rsync -a --delete /srv/backup/ "rsync://$STORAGE_USER@$STORAGE_HOST/$STORAGE_MODULE/" || echo "storage not reachable"
echo "$(date '+%F %T') backup done"

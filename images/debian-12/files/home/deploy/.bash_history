ls
cd releases
tar xzf site-0.3.tar.gz
ls -la site-0.3
diff -r site-0.3 /var/www/html
cp site-0.3/index.html /var/www/html/
curl -I http://localhost/
exit

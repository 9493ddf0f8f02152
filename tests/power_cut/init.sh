#!/bin/busybox sh
# The first process of the guest: from the initial file system to a root that is read-only and a state partition, then the
# daemon. Says on the console what happened, in lines that begin with "VM", and hears "stop" there.
export PATH=/bin HOME=/tmp
case $0 in
/init)
    /bin/busybox mkdir -p /dev /proc /root
    /bin/busybox mount -t devtmpfs dev /dev
    /bin/busybox mount -t proc proc /proc
    while read -r module; do /bin/busybox insmod "/modules/$module"; done < /modules/order
    /bin/busybox mount -t ext4 -o ro /dev/vda /root
    /bin/busybox mount -o move /dev /root/dev
    /bin/busybox umount /proc
    exec /bin/busybox switch_root /root /bin/init.sh
    ;;
esac
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
exec < /dev/hvc0 > /dev/hvc0 2>&1
stty -echo
for word in $(cat /proc/cmdline); do
    case $word in time=*) date -u -s "@${word#*=}" > /dev/null ;; esac
done
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
# The journal is replayed here, after a cut. Where that is not enough, what every device does at its start is.
if ! mount -t ext4 -o noatime /dev/vdb /var/lib; then
    echo "VM checks the state partition: $(dmesg | grep -i -e ext4 -e jbd2 | tail -n 3 | tr '\n' ';')"
    e2fsck -p /dev/vdb
    if ! mount -t ext4 -o noatime /dev/vdb /var/lib; then
        echo "VM cannot mount the state partition"
        poweroff -f
    fi
fi
echo "VM up $(cut -d' ' -f1 /proc/uptime)"
# Not straight to the console: the daemon would take it for a terminal and send colours.
(
    rollcall --config /etc/rollcall.toml run
    echo "VM ended $?"
) 2>&1 | cat &
while read -r word; do
    case $word in
    stop) killall rollcall ;;
    off)
        umount /var/lib && echo "VM state is unmounted"
        poweroff -f
        ;;
    esac
done

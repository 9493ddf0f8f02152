#!/bin/busybox sh
# The first process of the guest: drivers, network, then guest.sh, whose output is the console's. All files are in memory.
export PATH=/bin HOME=/root
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
# shellcheck disable=SC2086 # none, or several parameters
while read -r module parameters; do insmod "/modules/$module" $parameters; done < /modules/order
exec < /dev/null > /dev/hvc0 2>&1
for word in $(cat /proc/cmdline); do
    case $word in
    time=*) date -u -s "@${word#*=}" > /dev/null ;;
    port=*) export PORT="${word#*=}" ;;
    esac
done
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
export HOST=10.0.2.2 RUST_BACKTRACE=1
sh /bin/guest.sh
poweroff -f

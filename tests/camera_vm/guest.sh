# Runs in the guest: a webcam in user space, and whatever the test on the host says, line by line. Host: $HOST, port: $PORT.

# Not straight to the console: the daemon would take it for a terminal and send colours.
mkfifo /tmp/log
cat /tmp/log &
exec 3> /tmp/log
webcam=
if [ -e /sys/devices/platform/vhci_hcd.0 ]; then
    mkfifo /run/webcam
    webcam /run/webcam "Door camera" 0042 /img/empty.jpg /img/first.yuyv > /tmp/log 2>&1 &
    webcam=$!
fi
# What udev does elsewhere: a name that stays, whatever number the camera comes back with.
names() {
    mkdir -p /dev/v4l/by-id
    while :; do
        for node in /sys/class/video4linux/*; do
            if [ "$(cat "$node/index" 2> /dev/null)" = 0 ]; then ln -sfn "../../${node##*/}" /dev/v4l/by-id/usb-door; fi
        done
        sleep 0.3
    done
}
names &
namer=$!
daemon=
# Its input never ends, so nc stays until the host hangs up.
mkfifo /tmp/never
exec 4<> /tmp/never
nc "$HOST" "$PORT" <&4 | while read -r word rest; do
    case $word in
    webcam)
        echo "VM tells the webcam: $rest"
        echo "$rest" > /run/webcam
        ;;
    start)
        # shellcheck disable=SC2086 # settings without blanks, one word each
        env $rest rollcall --config /etc/rollcall/config.toml run > /tmp/log 2>&1 &
        daemon=$!
        echo "VM started $daemon"
        ;;
    stop)
        kill -TERM "$daemon"
        wait "$daemon"
        echo "VM ended $?"
        ;;
    measure)
        # shellcheck disable=SC2012 # the names are numbers
        echo "VM measured $(awk '/VmRSS/{print $2}' "/proc/$daemon/status") $(ls "/proc/$daemon/fd" | wc -l) $(ls -d "/proc/$daemon/task/"* | wc -l)"
        ;;
    hung)
        # Within half a minute: the driver takes seconds to notice.
        for _ in $(seq 100); do
            stuck=$(grep -l '^State:.D' "/proc/$daemon/task/"*/status | head -n 1)
            if [ -n "$stuck" ]; then break; fi
            sleep 0.3
        done
        echo "VM hung in $(cat "${stuck%/status}/wchan")"
        ;;
    explain)
        for thread in "/proc/$daemon/task/"* $(grep -l '^State:.D' /proc/[0-9]*/status); do
            thread=${thread%/status}
            case $(cat "$thread/wchan") in futex_* | *poll* | 0) continue ;; esac
            echo "VM $thread $(cat "$thread/comm"): $(tr '\n' ' ' < "$thread/stack")"
        done
        dmesg | tail -n 20 | sed 's/^/VM kernel: /'
        echo "VM explained"
        ;;
    run) sh -c "$rest" 2>&1; echo "VM ran $?" ;;
    quit) break ;;
    esac
done
# shellcheck disable=SC2086 # none, or one number
kill $webcam "$namer"
exit 0

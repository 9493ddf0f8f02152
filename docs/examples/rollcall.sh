#!/bin/sh
# rollcall from a shell, with nothing but mosquitto's clients:
#
#   rollcall.sh enrol ID NAME PHOTO…     enrol somebody, and print the reply
#   rollcall.sh today [VENUE]            who came today, who was late (venue: main)
#   rollcall.sh withdraw ID              erase somebody, events included
#   rollcall.sh events                   print events, until Ctrl-C
#
# MQTT_HOST, MQTT_PORT and ROLLCALL_BASE (rollcall/SITE/DEVICE) select the device.
set -eu

host=${MQTT_HOST:-127.0.0.1} port=${MQTT_PORT:-1883} base=${ROLLCALL_BASE:-rollcall/hq/door-1}

usage() {
    sed -n '3,8s/^# *//p' "$0" >&2
    exit 64
}

# A text as JSON has it. Names have no control characters: the device refuses them.
quoted() {
    printf '"%s"' "$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"
}

# Sends a command with the fields on standard input, and prints the reply. Each request has its own id: the same id again
# would return the stored reply. The subscription exists before the request is sent, so that the reply cannot be missed.
# The request is piped, because photographs are too long for a command line.
ask() {
    id="sh-$(date +%s)-$$"
    listen() { mosquitto_sub -h "$host" -p "$port" -i "$id" -q 1 -t "$base/reply/$id" "$@"; }
    listen -c -E
    { printf '{"request_id":"%s",' "$id"; cat; printf '}'; } |
        mosquitto_pub -h "$host" -p "$port" -q 1 -t "$base/command/$1" -s
    answer=$(listen -c -C 1 -W 60) || answer="no answer from $base"
    listen -E # Without -c: the broker need not keep anything for us any more.
    printf '%s\n' "$answer"
    case $answer in *'"ok":true'*) ;; *) exit 1 ;; esac
}

case ${1:-} in
enrol)
    [ $# -ge 4 ] || usage
    id=$2 name=$3
    shift 3
    {
        printf '"subject":{"id":%s,"name":%s},"images":[' "$(quoted "$id")" "$(quoted "$name")"
        comma=
        for photo; do
            printf '%s"' "$comma"
            base64 -w0 "$photo"
            printf '"'
            comma=,
        done
        printf ']'
    } | ask enrol
    ;;
today)
    printf '"venue":%s,"summary":true' "$(quoted "${2:-main}")" | ask attendance
    ;;
withdraw)
    [ $# -eq 2 ] || usage
    printf '"subject_id":%s,"erase":true' "$(quoted "$2")" | ask withdraw
    ;;
events)
    exec mosquitto_sub -h "$host" -p "$port" -q 1 -t "$base/event/+" -F '%t %p'
    ;;
*) usage ;;
esac

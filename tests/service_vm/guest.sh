#!/bin/bash
# Runs in the guest as a service of its own: carries out what comes over the second console, line by line.
#   in:  NUMBER BASE64(command)      out: NUMBER EXIT-CODE BASE64(what it printed)
exec < /dev/hvc0 3> /dev/hvc0
stty raw -echo
echo "0 0 dXA=" >&3
while read -r number command; do
    printed=$(base64 -d <<< "$command" | bash 2>&1)
    code=$?
    echo "$number $code $(base64 -w 0 <<< "$printed")" >&3
done

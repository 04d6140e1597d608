#!/bin/sh
# uptime: since the phone's own boot; the load is the host's.
read -r booted < "${HTPFARM_PHONE_ROOT:-}/system/etc/htpfarm/boot_epoch"
now=$(date +%s)
seconds=$((now - booted))
read -r one five fifteen rest < /proc/loadavg
minutes=$((seconds / 60 % 60))
hours=$((seconds / 3600))
if [ $hours -gt 0 ]; then
    up=$(printf '%d:%02d' $hours $minutes)
else
    up="$minutes min"
fi
[ "${1:-}" = -s ] && { date -d "@$booted" '+%Y-%m-%d %H:%M:%S'; exit 0; }
printf ' %s up %s,  0 users,  load average: %s, %s, %s\n' "$(date +%H:%M:%S)" "$up" "$one" "$five" "$fifteen"

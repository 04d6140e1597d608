#!/bin/sh
# df: the host's figures, unless the phone is told how much it has free (KiB in data_free_kib).
# With that file, /data is shown alone, in blocks of 1 KiB.
free_file=${HTPFARM_PHONE_ROOT:-}/system/etc/htpfarm/data_free_kib
if [ -f "$free_file" ]; then
    read -r free < "$free_file"
    total=115343360
    used=$((total - free))
    printf '%-20s %10s %10s %10s %4s %s\n' Filesystem 1K-blocks Used Available Use% "Mounted on"
    printf '%-20s %10d %10d %10d %3d%% %s\n' /dev/block/dm-1 $total $used "$free" $((used * 100 / total)) /data
    exit 0
fi
for place in /bin/df /usr/bin/df; do
    [ -x $place ] && exec $place "$@"
done
echo "df: no such program on the host" >&2
exit 127

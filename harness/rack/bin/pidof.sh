#!/bin/sh
# pidof NAME...: by the program's own name, by the script a shell runs, or by the command's name.
found=
for proc in /proc/[0-9]*; do
    pid=${proc#/proc/}
    [ "$pid" = $$ ] && continue
    comm=
    { read -r comm < "$proc/comm"; } 2>/dev/null || continue
    words=$(tr '\0' '\n' < "$proc/cmdline" 2>/dev/null | head -n 2)
    first=${words%%
*}
    second=${words#*
}
    for name in "$@"; do
        if [ "$comm" = "$name" ] || [ "${first##*/}" = "$name" ] || [ "${second##*/}" = "$name" ]; then
            found="$found $pid"
            break
        fi
    done
done
[ -n "$found" ] || exit 1
echo ${found# }

#!/bin/sh
# getprop [NAME [DEFAULT]]: one file a property, so that a reader never sees half a list.
P=${HTPFARM_PHONE_ROOT:-}/dev/__properties__
if [ $# -eq 0 ]; then
    for file in "$P"/*; do
        value=
        read -r value < "$file"
        printf '[%s]: [%s]\n' "${file##*/}" "$value"
    done
    exit 0
fi
value=${2:-}
case $1 in
    */*) ;;
    *) [ -f "$P/$1" ] && read -r value < "$P/$1" ;;
esac
printf '%s\n' "$value"

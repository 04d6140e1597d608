#!/bin/sh
# dumpsys battery | thermalservice: what the phone's state files say, in Android's layout.
R=${HTPFARM_PHONE_ROOT:-}
B=$R/sys/class/power_supply/battery
get() {
    value=
    [ -f "$1" ] && read -r value < "$1"
    printf '%s' "$value"
}
battery() {
    case $(get "$B/status") in
        Charging) status=2 ;;
        Discharging) status=3 ;;
        "Not charging") status=4 ;;
        Full) status=5 ;;
        *) status=1 ;;
    esac
    usb=false
    [ "$(get "$R/sys/class/power_supply/usb/online")" = 1 ] && usb=true
    echo "Current Battery Service state:"
    echo "  AC powered: false"
    echo "  USB powered: $usb"
    echo "  Wireless powered: false"
    echo "  Dock powered: false"
    echo "  Max charging current: 500000"
    echo "  Max charging voltage: 5000000"
    echo "  Charge counter: $(get "$B/charge_counter")"
    echo "  status: $status"
    echo "  health: 2"
    echo "  present: true"
    echo "  level: $(get "$B/capacity")"
    echo "  scale: 100"
    echo "  voltage: $(($(get "$B/voltage_now") / 1000))"
    echo "  temperature: $(get "$B/temp")"
    echo "  technology: Li-ion"
}
temperatures() { # no subshells: a phone under test is asked for this often
    for zone in "$R"/sys/class/thermal/thermal_zone*; do
        read -r name < "$zone/type"
        read -r milli < "$zone/temp"
        case $name in # Android's temperature types
            cpu*) kind=0 ;;
            gpu*) kind=1 ;;
            battery*) kind=2 ;;
            skin*) kind=3 ;;
            nsp* | npu*) kind=9 ;;
            *) kind=-1 ;;
        esac
        printf '\tTemperature{mValue=%d.%03d, mType=%s, mName=%s, mStatus=%s}\n' \
            $((milli / 1000)) $((milli % 1000)) $kind "$name" "$1"
    done
}
thermal() {
    status=$(get "$R/system/etc/htpfarm/thermal_status")
    echo "IsStatusOverride: false"
    echo "ThermalEventListeners:"
    echo "	callbacks: 1"
    echo "	killed: false"
    echo "	broadcasts count: -1"
    echo "ThermalStatusListeners:"
    echo "	callbacks: 1"
    echo "	killed: false"
    echo "	broadcasts count: -1"
    echo "Thermal Status: $status"
    echo "Cached temperatures:"
    temperatures "$status"
    echo "HAL Ready: true"
    echo "HAL connection:"
    echo "	ThermalHAL AIDL 1 connected: yes"
    echo "Current temperatures from HAL:"
    temperatures "$status"
    echo "Current cooling devices from HAL:"
    echo "Temperature static thresholds from HAL:"
}
case ${1:-} in
    battery) battery ;;
    thermalservice) thermal ;;
    -l) printf 'Currently running services:\n  battery\n  thermalservice\n' ;;
    "") battery; thermal ;;
    *)
        echo "Can't find service: $1" >&2
        exit 0
        ;;
esac

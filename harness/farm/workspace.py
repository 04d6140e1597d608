"""Where things lie on a phone, and the shell functions several modules run there.

    /data/local/tmp/htpfarm/store/<first 16 digits of sha256>/<name>   files, kept from run to run
                                                             .<name>.ok   says that the file is whole
    /data/local/tmp/htpfarm/run/<run id>-<n>/                one session, removed at its end
                                             pid             its process: number, start, boot id

Commands stand in the adb command itself and not in a pushed script, since virtual phones without namespaces rewrite
paths there. All are POSIX sh and work with Android's toybox as with GNU.
"""

from __future__ import annotations

import shlex

ROOT = "/data/local/tmp/htpfarm"
STORE = f"{ROOT}/store"
RUN = f"{ROOT}/run"
PID_FILE = "pid"
BOOT_ID = "/proc/sys/kernel/random/boot_id"

# Start of a process, in ticks since boot: field 22 of its stat, the 20th after the name, which may hold anything.
START_OF = (
    "start_of() { read -r line 2>/dev/null < /proc/$1/stat || return 1; set -- ${line##*) }; echo ${20}; }; "
    f"boot_id() {{ cat {BOOT_ID} 2>/dev/null || getprop ro.boottime.init; }}; "
)

RECORD_PID = START_OF + f'echo "$$ $(start_of $$) $(boot_id)" > {PID_FILE}'
"""Writes who the present shell is to its folder; a program it then `exec`s is the same process."""

# end_session FOLDER: kills the process its pid file names, if it is still that one, and whatever has its working
# folder inside (the runner's children), waits until they are gone, and removes the folder. Prints what it did.
END_SESSION = (
    START_OF
    + f"""
end_session() {{
  victims=
  if read -r pid start boot 2>/dev/null < "$1/{PID_FILE}"; then
    case "$pid$start" in
      ''|*[!0-9]*) ;;
      *) [ "$(start_of "$pid")" = "$start" ] && [ "$(boot_id)" = "$boot" ] && victims=$pid ;;
    esac
  fi
  here=$(cd "$1" 2>/dev/null && pwd -P) || here=
  if [ -n "$here" ]; then
    victims="$victims $(ls -l /proc/[0-9]*/cwd 2>/dev/null | while read -r entry; do
      to=${{entry##* -> }}
      case "$to" in
        "$here"|"$here/"*) from=${{entry%/cwd -> *}}; echo "${{from##*/}}" ;;
      esac
    done)"
  fi
  for pid in $victims; do
    [ "$pid" = $$ ] || {{ kill -9 "$pid" 2>/dev/null && echo "killed $pid"; }}
  done
  for pid in $victims; do
    tries=0
    while [ -d "/proc/$pid" ] && [ $tries -lt 30 ]; do
      case "$(cat "/proc/$pid/stat" 2>/dev/null)" in *') Z '*) break ;; esac
      sleep 0.1; tries=$((tries + 1))
    done
  done
  rm -rf -- "$1" && echo "removed $1"
}}
"""
)


def end_session_command(folder: str) -> str:
    """Ends whatever runs in a session's folder and removes it."""
    return f"{END_SESSION}\nend_session {shlex.quote(folder)}"


def sweep_command() -> str:
    """Ends every session on the phone, and removes files that were being pushed when their sender died."""
    return f"""{END_SESSION}
left=0
for folder in {RUN}/*; do
  if [ -d "$folder" ]; then end_session "$folder" || left=1; fi
done
for part in {STORE}/*/.*.part; do
  if [ -f "$part" ]; then rm -f -- "$part" && echo "removed $part"; fi
done
exit $left
"""

# shellcheck shell=bash
# Shared by the launchers, which source it. With dry_run=1, `run` prints commands instead of running them.

dry_run=0

die() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# Print a command, quoted so that it can be pasted; run it unless this is a dry run.
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  ((dry_run)) || "$@"
}

# need NAME EXAMPLE: stop if the variable is not set.
need() {
  [[ -n ${!1:-} ]] || die "$1 is not set; for example: export $1=$2"
}

# The comment at the top of the script is its help.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit "${1:-0}"
}

# Read --dry-run and --help; the rest goes into `arguments`.
read_options() {
  while (($#)); do
    case $1 in
      --dry-run) dry_run=1 ;;
      -h | --help) usage ;;
      *) break ;;
    esac
    shift
  done
  arguments=("$@")
  ((${#arguments[@]})) || usage 2 >&2
}

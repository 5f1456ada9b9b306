# shellcheck shell=bash
# Shared by the launchers, which source it. With dry_run=1, `run` prints commands instead of running them.

dry_run=0

die() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# Print a command, quoted so that it can be pasted.
show() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
}

# Print a command; run it unless this is a dry run.
run() {
  show "$@"
  ((dry_run)) || "$@"
}

# need NAME EXAMPLE: stop if the variable is not set.
need() {
  [[ -n ${!1:-} ]] || die "$1 is not set; for example: export $1=$2"
}

# need_program NAME WHERE: stop if the program is missing, unless this is a dry run; WHERE says where it comes from.
need_program() {
  ((dry_run)) || command -v "$1" >/dev/null || die "the program $1 is not on PATH; $2"
}

# need_number NAME: stop if the variable is set to something else than a whole number.
need_number() {
  [[ ${!1:-0} =~ ^[0-9]+$ ]] || die "$1=${!1} is not a whole number"
}

# need_label NAME LONGEST [more]: stop if the target would refuse the value as a name (a DNS label: RFC 1123, and RFC 1035
# where MORE is "letter").
need_label() {
  local value=${!1} first='a-z0-9'
  [[ ${3:-} != letter ]] || first=a-z
  (
    LC_ALL=C
    [[ $value =~ ^[$first]([-a-z0-9]*[a-z0-9])?$ ]]
  ) || die "$1=$value is not a name that the cluster takes: use a-z, 0-9 and -, begin with a ${3:-letter or digit}, end without -"
  ((${#value} <= $2)) || die "$1=$value has ${#value} characters, and here a name has at most $2; shorten it"
}

# split TEXT: put the words of TEXT into `words`, with the quotes of a shell and nothing else of it.
split() {
  words=()
  local word marked
  [[ -n ${1//[[:space:]]/} ]] || return 0
  marked=$(xargs printf '%s\n.\n' <<<"$1" 2>/dev/null) || die "cannot read $1; a quote is not closed"
  local IFS=
  while read -r word; do
    words+=("$word")
    read -r word # the mark
  done <<<"$marked"
}

# resume_setting: what the job is told about resuming and about the checks before it; see lclm train --resume.
resume_setting() {
  export LCLM_RESUME=${LCLM_RESUME:-} LCLM_PREFLIGHT=${LCLM_PREFLIGHT:-}
  case $LCLM_RESUME in '' | required | auto | never) ;; *) die "LCLM_RESUME=$LCLM_RESUME is none of required, auto, never" ;; esac
}

# on_bucket ARGUMENTS...: whether the run's folder is a URL, so that nothing has to be mounted for it.
on_bucket() {
  local one
  for one in "$@"; do
    [[ $one =~ ^run_dir=(gs|s3):// ]] && return 0
  done
  return 1
}

tries=${LCLM_SUBMIT_TRIES:-5}

# retry PATTERN COMMAND...: run it; while what it says on standard error matches PATTERN, wait and try again.
retry() {
  local pattern=$1 try said status
  shift
  for ((try = 1; ; try++)); do
    status=0
    { said=$("$@" 2>&1 >&3) || status=$?; } 3>&1
    [[ -z $said ]] || printf '%s\n' "$said" >&2
    ((status)) || return 0
    if ((try >= tries)) || ! grep -qiE "$pattern" <<<"$said"; then
      return "$status"
    fi
    pause "$try"
  done
}

# pause TRY: wait before another try, longer each time.
pause() {
  local seconds=$(($1 * ${LCLM_RETRY_SECONDS:-10}))
  echo "no answer; trying again in $seconds s ($1 of $((tries - 1)))" >&2
  sleep "$seconds"
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

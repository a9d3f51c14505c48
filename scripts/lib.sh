# shellcheck shell=bash disable=SC2034
# SPDX-License-Identifier: GPL-2.0
# Shared by the scripts: paths, messages, steps with progress, the toolroot. Sourced after
# `set -euo pipefail`.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/rnull_loop
# A user's PATH may lack modinfo and depmod.
PATH=$PATH:/usr/sbin:/sbin
# The kernel series that the module supports, the newest first: the two newest ones that Debian has.
supported=(7.3 7.2)
# The series of the stock kernel, which the lab runs unless it is told otherwise.
series=${supported[0]}

# The Debian kernels that the lab can run. For each: the suite that has the kernel, the suite whose
# compilers have built it, its series, or "newest", and its architecture.
declare -A debian_kernels=(
	[stock]="trixie-backports trixie $series amd64"
	[trixie-7.2]='trixie-backports trixie 7.2 amd64'
	[forky]='forky forky newest amd64'
	[sid]='sid sid newest amd64'
	[experimental]='experimental sid newest amd64'
	[arm64]="trixie-backports trixie $series arm64"
)

# series_of RELEASE: prints the series of a kernel.
series_of() { say "$1" | grep -Eo '^[0-9]+\.[0-9]+' || :; }

# is_supported RELEASE: tells whether a kernel is of a supported series.
is_supported() {
	[[ " ${supported[*]} " == *" $(series_of "$1") "* ]]
}

say() { printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
	warn "$@"
	exit "${die_status:-1}"
}

[[ $repo$cache != *[[:space:]:]* ]] || die "the kernel's build system takes no path with a space or a colon:" \
	"use another directory than '$repo', or another XDG_CACHE_HOME than '${cache%/*}'"

# Prints the comment at the head of a script, which is its help.
show_help() { sed -n '3,/^[^#]/{/^#/{s/^# \{0,1\}//;p}}' "$0"; }

# need_argument OPTION COUNT: COUNT arguments are left, the option itself included.
need_argument() { (($2 > 1)) || die "$1 needs an argument; see ${0##*/} --help"; }

# The packages that build a kernel's Rust parts and a module, besides the C compiler.
build_packages=(rustc rust-src rust-clippy rustfmt bindgen make flex bison bc libelf-dev libssl-dev pahole kmod cpio
	xz-utils python3 rsync perl)

# need_packages WHY PACKAGE...: fails unless these packages are on this machine. If apt runs the
# caller, it may not have configured yet what it has unpacked.
need_packages() {
	local why=$1 package missing=() status
	shift
	for package; do
		# A line for each architecture that the package is installed for.
		status=$(dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null) || :
		grep -qxE 'installed|unpacked|half-configured|triggers-.*' <<<"$status" || missing+=("$package")
	done
	((!${#missing[@]})) || die "$why needs packages that are missing here; as root run:" \
		"apt-get install --no-install-recommends ${missing[*]}"
}

# need_space MIB DIRECTORY: fails unless DIRECTORY's file system has MIB free. A caller that the
# user cannot give another cache exports `fixed_cache`.
need_space() {
	local free advice='make room, or set XDG_CACHE_HOME to a directory on a larger disk'
	free=$(df --output=avail -BM "$2" | tail -n 1 | tr -dc 0-9)
	[[ -z ${fixed_cache-} ]] || advice='make room there'
	((free >= $1)) || die "$2 has $free MiB free, but $1 MiB are needed: $advice"
}

# only_one: waits until no other run of this script uses the cache.
only_one() {
	mkdir -p "$cache/log"
	exec {lock}>"$cache/${0##*/}.lock"
	! flock -n "$lock" || return 0
	warn "another run uses $cache; waiting until it ends"
	flock "$lock"
}

# copy_of NAME: prints the path of the copy of the sources for NAME, which is outside the
# repository.
copy_of() { say "$cache/$1-$(sha256sum <<<"$repo" | cut -c 1-12)"; }

# copy_sources NAME TOOLROOT: brings that copy up to date.
copy_sources() {
	mkdir -p "$(copy_of "$1")"
	copy_repository "$2" "$(copy_of "$1")" --delete --exclude=/{docs,scripts,tests}
}

# copy_repository TOOLROOT DIR [OPTION-OF-RSYNC...]: copies all but the results of builds.
copy_repository() {
	in_root "$1" rsync -a --filter=':- .gitignore' --exclude=/.git "${@:3}" "$repo/" "$2/"
}

# driver_version: prints the version, which `make check` compares with those in other files.
driver_version() { sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' "$repo/dkms.conf"; }

step_number=0 step_count='' step_job=''

# skip TITLE: reports a step as done before.
skip() {
	step_number=$((step_number + 1))
	[[ -z $step_count ]] || say "[$step_number/$step_count] $1: present"
}

trap 'stop_step' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

stop_step() { [[ -z $step_job ]] || kill -- "-$step_job" 2>/dev/null || :; }

# step TITLE COMMAND...: runs COMMAND with its output in a log, and shows the time it has taken so
# far and the last line it wrote: on a terminal every second, otherwise every 15 seconds.
step() {
	local title=$1 start=$SECONDS log status=0 prefix='' tick=0 every=15
	shift
	step_number=$((step_number + 1))
	[[ -z $step_count ]] || prefix="[$step_number/$step_count] "
	log=$cache/log/${0##*/}-$1.log
	mkdir -p "$cache/log"
	say "$prefix$title"
	[[ ! -t 1 ]] || every=1
	set -m
	"$@" >"$log" 2>&1 </dev/null &
	step_job=$!
	set +m
	while kill -0 "$step_job" 2>/dev/null; do
		sleep 0.2
		tick=$((tick + 1))
		((tick % (5 * every))) || show_progress "$prefix" "$((SECONDS - start))" "$log"
	done
	wait "$step_job" || status=$?
	step_job=''
	[[ ! -t 1 ]] || printf '\r\e[K'
	if ((status)); then
		# An error message of our own scripts is enough.
		! tail -n 1 "$log" | grep -E '^(lab|kdir): ' >&2 || exit "$status"
		tail -n 20 "$log" | sed 's/^/    /' >&2
		die "failed after $((SECONDS - start)) s: $title; the full log is $log"
	fi
	say "$prefix  done in $((SECONDS - start)) s"
}

show_progress() {
	local last width=100
	last=$(tail -c 400 "$3" | tr '\r' '\n' | grep -v '^[[:space:]]*$' | tail -n 1 || :)
	if [[ -t 1 ]]; then
		printf '\r\e[K%s  %d s: %.*s' "$1" "$2" "$width" "$last"
	else
		printf '%s  %d s: %.*s\n' "$1" "$2" "$width" "$last"
	fi
}

# in_root ROOT COMMAND...: runs COMMAND in ROOT in the current directory, with the repository, the
# cache, /dev and /proc at the same paths as outside, and the outer root in /host. The mounts end
# with the command.
in_root() {
	((EUID == 0)) || die "this works in the toolroot, which needs root; use sudo"
	local variables=(HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
		DEBIAN_FRONTEND=noninteractive XDG_CACHE_HOME="${cache%/*}") name
	for name in TERM http_proxy https_proxy no_proxy; do
		[[ -z ${!name-} ]] || variables+=("$name=${!name}")
	done
	# shellcheck disable=SC2016  # expanded by the inner shells
	env -i "${variables[@]}" unshare --mount --propagation private bash -euc '
		root=$1 here=$PWD
		mkdir -p "$root/host"
		mount --rbind / "$root/host"
		for tree in /proc /dev "$2" "$3"; do
			mkdir -p "$root$tree"
			mount --rbind "$tree" "$root$tree"
		done
		shift 3
		exec chroot "$root" bash -c '\''cd "$1" 2>/dev/null || cd /; shift; exec "$@"'\'' - "$here" "$@"
		' - "$1" "$repo" "$cache" "${@:2}"
}

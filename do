#!/bin/sh
# ./do COMMAND: everything a person does with this checkout. See usage below.
set -eu
cd "$(dirname "$0")"

build=${BUILD:-build}
packages='gcc libc6-dev meson ninja-build pkg-config libuv1-dev libsqlite3-dev libsodium-dev
libopenblas-openmp-dev libjansson-dev libinih-dev libspng-dev libjpeg-dev libcmocka-dev'
# Only where every test must run.
test_packages='e2fsprogs xfsprogs btrfs-progs systemd-container systemd qemu-system-x86 cpio lz4'
fuzz_packages='clang libomp-dev'
lint_packages='clang clang-format libomp-dev'

usage()
{
	cat <<-'TEXT'
	usage: ./do COMMAND
	  run [OPTIONS]   install what is missing, build, train under the supervisor with a live view
	                  (OPTIONS go to `ckptctl run`: --state DIR, --config FILE, --set key=value)
	  setup           install missing packages
	  build           compile
	  test [NAME...]  all tests that need no special machine, or those named
	                  (disk-full: the suite disk over every bit and call, about two hours;
	                  crash-full: over 100,000 states that a power cut can leave, cuts-full: 1,200
	                  cuts on ext4, xfs and btrfs, as root; chaos-full: over 1,000 faults of all
	                  kinds; vm-full: 50 power cuts of a Debian with systemd in QEMU, as root, about
	                  half an hour)
	  bench [WORK..]  print ratios against peers and limits measured in the same run
	                  (WORK: train, sample, memory, ops, numerics, peers, checkpoint, recovery;
	                  see bench/run)
	  fuzz [TARGET [SECONDS]]  libFuzzer on all that takes outside bytes (tests/fuzz), or one;
	                  60 s each. New inputs go to build-fuzz/corpus
	  lint            formatting, clang's warnings, the rules of the tree
	  install         install under PREFIX (default /usr/local) with the systemd units and a first
	                  /etc/ckptd/cars.conf; `systemctl enable --now ckptd@NAME` starts a run
	  uninstall       stop all runs and remove what install put under PREFIX
	TEXT
}

# Before the output goes elsewhere: says what a person with rights would have to do.
need_root()
{
	[ "$(id -u)" = 0 ] || command -v sudo >/dev/null || {
		echo "./do: this needs root or sudo: $*" >&2
		exit 1
	}
}

as_root()
{
	if [ "$(id -u)" = 0 ]; then
		"$@"
	else
		sudo "$@"
	fi
}

# Those of the named Debian packages that are not installed.
missing_packages()
{
	for package in "$@"; do
		dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' ||
			printf ' %s' "$package"
	done
}

install_packages()
{
	if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
		echo "./do: no apt here; these must be installed (Debian's names): $*" >&2
		return
	fi
	missing=$(missing_packages "$@")
	[ -n "$missing" ] || return 0
	need_root "apt-get install$missing"
	echo "./do: installing$missing"
	log=$(mktemp)
	# One repository that does not answer need not matter: what counts is the install.
	as_root env DEBIAN_FRONTEND=noninteractive sh -c "apt-get update -q
		apt-get install -q -y --no-install-recommends $missing" >"$log" 2>&1 || {
		tail -n 20 "$log" >&2
		echo "./do: apt-get failed; all of its words are in $log" >&2
		exit 1
	}
	rm -f "$log"
}

setup()
{
	# shellcheck disable=SC2086 # a list of words
	install_packages $packages
}

# compile FOLDER [MESON OPTIONS]: sets the folder up when it is new.
compile()
{
	folder=$1
	shift
	if [ ! -f "$folder/build.ninja" ]; then
		log=$(mktemp)
		meson setup "$folder" "$@" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
		rm -f "$log"
	fi
	if [ -t 1 ]; then
		ninja -C "$folder"
	else
		ninja -C "$folder" --quiet
	fi
}

# The last line counts test cases, not programs: TAP's "ok" and "not ok" of every log. Names are
# tests or whole suites; NAME-full asks for all of what an ordinary run only samples.
run_tests()
{
	count=$#
	patience=1
	while [ "$count" -gt 0 ]; do
		name=${1%-full}
		if [ "$name" != "$1" ]; then
			export CKPTD_FULL=1
			patience=0
		fi
		suite=$(meson test -C "$build" --no-rebuild --list | sed -n "s|.*:$name / ||p")
		# shellcheck disable=SC2086
		set -- "$@" ${suite:-$name}
		shift
		count=$((count - 1))
	done
	# Once each: a test and its suite may both be named.
	# shellcheck disable=SC2046
	set -- $(printf '%s\n' "$@" | sort -u)
	rm -f "$build/meson-logs/testlog.txt" "$build/meson-logs/testlog.json"
	status=0
	meson test -C "$build" --no-rebuild --print-errorlogs --timeout-multiplier "$patience" \
		"$@" || status=$?
	log=$build/meson-logs/testlog.txt
	passed=0 failed=0 skipped=0
	if [ -f "$log" ]; then
		skipped=$(grep -cE '^(not )?ok [0-9]+.*# SKIP' "$log") || true
		passed=$(grep -E '^ok [0-9]+' "$log" | grep -cv '# SKIP') || true
		failed=$(grep -E '^not ok [0-9]+' "$log" | grep -cv '# SKIP') || true
		# meson shows what a program wrote to stderr: the failed assertion is in its TAP.
		awk '/^(not )?ok / { told = /^not / && !/# SKIP/ } told && /^(not ok|#) /' "$log" >&2
	fi
	[ "$skipped" -eq 0 ] || echo "$skipped skipped: this machine cannot run them"
	# meson takes cmocka's "not ok # SKIP" for a failure: what counts besides is how programs ended.
	if [ $status -ne 0 ] && [ "$failed" -eq 0 ] && [ -f "$log" ]; then
		failed=$(grep '^result: ' "$log" | grep -cv 'exit status 0$') || true
	fi
	# Its exit status is the number of programs that failed; anything else is a failure of its own.
	bad=$(grep -cE '"result": "(FAIL|ERROR|TIMEOUT|INTERRUPT|UNEXPECTEDPASS)"' \
		"$build/meson-logs/testlog.json" 2>/dev/null) || true
	if [ "$status" -ne "${bad:-0}" ]; then
		echo "./do: meson test ended with status $status, and $bad programs failed" >&2
		failed=$((failed + 1))
	fi
	[ "$passed" -gt 0 ] || [ "$failed" -gt 0 ] || failed=1
	echo "$passed passed, $failed failed"
	[ "$failed" -eq 0 ]
}

# Each target (or the named one) for some seconds, from the committed corpus and what was found here.
fuzz()
{
	seconds=${2:-60}
	# shellcheck disable=SC2086
	install_packages $fuzz_packages
	CC=clang compile build-fuzz -Dfuzz=true -Dbuildtype=debugoptimized -Db_lundef=false
	for target in ${1:-$(ls tests/fuzz/corpus)}; do
		[ -x "build-fuzz/tests/fuzz/fuzz_$target" ] || {
			echo "./do: no fuzz target '$target': there are $(ls tests/fuzz/corpus | tr '\n' ' ')" >&2
			exit 1
		}
		mkdir -p "build-fuzz/corpus/$target"
		"build-fuzz/tests/fuzz/fuzz_$target" -max_total_time="$seconds" -max_len=20480 \
			-artifact_prefix="build-fuzz/$target-" "build-fuzz/corpus/$target" \
			"tests/fuzz/corpus/$target"
	done
}

lint()
{
	bad=0
	# shellcheck disable=SC2086
	install_packages $lint_packages
	echo "lint: formatting"
	# Other versions break lines elsewhere.
	if clang-format --version | grep -q 'version 14\.'; then
		find . -name '*.[ch]' -not -path './build*' -print0 |
			xargs -0 clang-format --dry-run -Werror || bad=1
	else
		echo "not checked: the tree is formatted by clang-format 14"
	fi
	echo "lint: clang's warnings"
	CC=clang compile build-lint -Dbuildtype=debug || bad=1
	echo "lint: the rules of the tree"
	ninja -C build-lint --quiet tests/tidy/tidy &&
		meson test -C build-lint --no-rebuild --suite tidy --print-errorlogs || bad=1
	return $bad
}

# The user, the folder, a first configuration (never over one that is there), systemd's knowledge.
settle_service()
{
	new=false
	[ -e /etc/ckptd/cars.conf ] || {
		new=true
		as_root install -D -m 644 etc/ckptd.conf /etc/ckptd/cars.conf
	}
	if command -v systemd-sysusers >/dev/null; then
		as_root systemd-sysusers ckptd.conf
		as_root systemd-tmpfiles --create ckptd.conf
	fi
	[ ! -d /run/systemd/system ] || as_root systemctl daemon-reload
	if $new; then
		echo "./do: edit /etc/ckptd/cars.conf (each /etc/ckptd/NAME.conf is a run), then, as root:"
		echo "  ckptctl init --instance cars && systemctl enable --now ckptd@cars"
	else
		echo "./do: runs go over to what is installed now, without losing a step, by:"
		echo "  systemctl restart 'ckptd@*.service'"
	fi
}

# Every instance ends, its last step saved, and no longer starts with the machine.
end_instances()
{
	[ -d /run/systemd/system ] || return 0
	for link in /etc/systemd/system/*.wants/ckptd@*.service \
		/etc/systemd/system/*.wants/ckptd-scrub@*.timer; do
		[ ! -L "$link" ] || as_root systemctl disable "${link##*/}"
	done
	as_root systemctl stop 'ckptd-scrub@*.timer' 'ckptd@*.service'
}

command=${1:-help}
[ $# -eq 0 ] || shift
case $command in
run)
	setup
	compile "$build"
	exec "$build/ctl/ckptctl" run "$@"
	;;
setup)
	setup
	;;
build)
	setup
	compile "$build"
	;;
test)
	setup
	# shellcheck disable=SC2086
	[ -z "${CI:-}" ] || install_packages $test_packages
	compile "$build"
	run_tests "$@"
	;;
bench)
	setup
	compile "$build"
	exec bench/run "$build" "$@"
	;;
fuzz)
	setup
	fuzz "$@"
	;;
lint)
	setup
	lint
	;;
install)
	setup
	[ ! -f build-install/build.ninja ] ||
		meson configure build-install -Dprefix="${PREFIX:-/usr/local}"
	compile build-install -Dprefix="${PREFIX:-/usr/local}"
	need_root meson install
	as_root meson install -C build-install --no-rebuild
	[ -n "${DESTDIR:-}" ] || settle_service
	;;
uninstall)
	need_root ninja -C build-install uninstall
	[ -n "${DESTDIR:-}" ] || end_instances
	as_root ninja -C build-install uninstall
	[ -n "${DESTDIR:-}" ] || [ ! -d /run/systemd/system ] || as_root systemctl daemon-reload
	echo "./do: left as they are: runs in /var/lib/ckptd, settings in /etc/ckptd, the user ckptd"
	;;
help | --help | -h)
	usage
	;;
*)
	usage >&2
	exit 2
	;;
esac

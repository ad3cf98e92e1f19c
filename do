#!/bin/sh
# ./do COMMAND: everything a person does with this checkout. See usage below.
set -eu
cd "$(dirname "$0")"

build=${BUILD:-build}
packages='gcc meson ninja-build pkg-config libuv1-dev libsqlite3-dev libsodium-dev
libopenblas-openmp-dev libjansson-dev libinih-dev libspng-dev libjpeg-dev libcmocka-dev'
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
	  bench [NAME..]  print ratios against peers and limits measured in the same run
	  lint            formatting, clang's warnings, the rules of the tree
	  install         install under PREFIX (default /usr/local) with the systemd units
	  uninstall       remove what install put there
	TEXT
}

as_root()
{
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		echo "./do: this needs root or sudo: $*" >&2
		exit 1
	fi
}

# Installs those of the named Debian packages that are not there (virtual ones count as there when
# something provides them).
install_packages()
{
	if ! command -v apt-get >/dev/null; then
		echo "./do: no apt here; make sure these are installed (Debian's names):" $* >&2
		return
	fi
	missing=
	for package in $*; do
		dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Provides}\n' 2>/dev/null |
			grep '^ii' | tr -d ',' | grep -qw -- "$package" || missing="$missing $package"
	done
	[ -n "$missing" ] || return 0
	echo "./do: installing$missing"
	as_root env DEBIAN_FRONTEND=noninteractive sh -c "apt-get update -q &&
		apt-get install -q -y --no-install-recommends $missing" >setup.log 2>&1 || {
		tail -n 20 setup.log >&2
		echo "./do: apt-get failed; see above and setup.log" >&2
		exit 1
	}
	rm -f setup.log
}

setup()
{
	install_packages "$packages"
}

compile()
{
	[ -f "$build/build.ninja" ] || meson setup "$build" >/dev/null ||
		{ meson setup "$build"; exit 1; }
	ninja -C "$build" --quiet
}

# The last line counts test cases, not programs: TAP's "ok" and "not ok" of every log.
run_tests()
{
	rm -f "$build/meson-logs/testlog.txt"
	status=0
	if [ $# -gt 0 ]; then
		meson test -C "$build" --no-rebuild --print-errorlogs "$@" || status=$?
	else
		meson test -C "$build" --no-rebuild --print-errorlogs || status=$?
	fi
	log=$build/meson-logs/testlog.txt
	passed=0 failed=0
	if [ -f "$log" ]; then
		passed=$(grep -cE '^ok [0-9]+' "$log") || true
		failed=$(grep -cE '^not ok [0-9]+' "$log") || true
	fi
	[ $status -eq 0 ] || [ "$failed" -gt 0 ] || failed=1
	[ "$passed" -gt 0 ] || [ "$failed" -gt 0 ] || failed=1
	echo "$passed passed, $failed failed"
	[ "$failed" -eq 0 ]
}

lint()
{
	install_packages "$lint_packages"
	echo "lint: formatting"
	git ls-files '*.c' '*.h' | xargs clang-format --dry-run -Werror
	echo "lint: clang's warnings"
	[ -f build-lint/build.ninja ] || CC=clang meson setup build-lint -Dbuildtype=debug >/dev/null
	ninja -C build-lint --quiet
	echo "lint: the rules of the tree"
	meson test -C build-lint --no-rebuild --suite tidy --print-errorlogs
}

command=${1:-help}
[ $# -eq 0 ] || shift
case $command in
run)
	setup
	compile
	exec "$build/ctl/ckptctl" run "$@"
	;;
setup)
	setup
	;;
build)
	setup
	compile
	;;
test)
	setup
	compile
	run_tests "$@"
	;;
bench)
	setup
	compile
	exec bench/run "$build" "$@"
	;;
lint)
	setup
	lint
	;;
install)
	setup
	[ -f build-install/build.ninja ] ||
		meson setup build-install --prefix "${PREFIX:-/usr/local}" >/dev/null
	ninja -C build-install --quiet
	as_root meson install -C build-install --no-rebuild
	;;
uninstall)
	as_root ninja -C build-install uninstall
	;;
help | --help | -h)
	usage
	;;
*)
	usage >&2
	exit 2
	;;
esac

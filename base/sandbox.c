/* See base/sandbox.h. EPERM rather than death: a library that only tries (glibc, OpenMP) goes on.
 *
 * A list of what is refused, not of what is allowed: what glibc, OpenMP, OpenBLAS and the
 * sanitizers call differs between their versions and CPUs, and a call that is missing in such a
 * list ends a training of months after an upgrade. Under systemd the unit has a list of what is
 * allowed, kept by those who know; what decides here is that files are closed (base/landlock.h),
 * and no filter can tell one path from another. */
#include "base/sandbox.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#endif

#ifdef NATIVE_ARCH

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define RETURN(action) BPF_STMT(BPF_RET | BPF_K, (action))
#define UNLESS_EQUAL_SKIP(value, count) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 0, (count))
#define REFUSE(code) RETURN(SECCOMP_RET_ERRNO | (code))
#define NEW_NAMESPACES                                                                             \
	(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER |             \
		CLONE_NEWPID | CLONE_NEWNET)
#define DENY(call) UNLESS_EQUAL_SKIP(SYS_##call, 1), REFUSE(EPERM)

static const struct sock_filter filter[] = {
	LOAD(arch),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NATIVE_ARCH, 1, 0),
	RETURN(SECCOMP_RET_KILL_PROCESS),
	LOAD(nr),
#ifdef __x86_64__
	/* x32 */
	BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1),
	RETURN(SECCOMP_RET_KILL_PROCESS),
#endif
	DENY(execve),
	DENY(execveat),
	DENY(socket),
	DENY(socketpair),
	DENY(connect),
	DENY(bind),
	DENY(listen),
	DENY(accept4),
	/* What Landlock says nothing about, by path. */
	DENY(fchmodat),
	DENY(fchownat),
	DENY(truncate),
	DENY(utimensat),
	DENY(setxattr),
	DENY(lsetxattr),
	DENY(removexattr),
	DENY(lremovexattr),
#ifdef SYS_fchmodat2
	DENY(fchmodat2),
#endif
#ifdef __x86_64__
	DENY(accept),
	DENY(chmod),
	DENY(chown),
	DENY(lchown),
	DENY(utime),
	DENY(utimes),
	DENY(futimesat),
	DENY(iopl),
	DENY(ioperm),
	DENY(modify_ldt),
#endif
	DENY(pidfd_getfd),
	DENY(kcmp),
	DENY(process_vm_readv),
	DENY(process_vm_writev),
	DENY(mount),
	DENY(umount2),
	DENY(fsopen),
	DENY(fspick),
	DENY(open_tree),
	DENY(move_mount),
	DENY(pivot_root),
	DENY(chroot),
	DENY(unshare),
	DENY(setns),
	DENY(open_by_handle_at),
	DENY(setuid),
	DENY(setgid),
	DENY(setreuid),
	DENY(setregid),
	DENY(setresuid),
	DENY(setresgid),
	DENY(setgroups),
	DENY(setfsuid),
	DENY(setfsgid),
	DENY(capset),
	DENY(bpf),
	DENY(perf_event_open),
	DENY(userfaultfd),
	DENY(keyctl),
	DENY(add_key),
	DENY(request_key),
	DENY(init_module),
	DENY(finit_module),
	DENY(delete_module),
	DENY(kexec_load),
	DENY(syslog),
	DENY(acct),
	DENY(quotactl),
	DENY(sethostname),
	DENY(setdomainname),
	DENY(settimeofday),
	DENY(adjtimex),
	DENY(clock_settime),
	DENY(clock_adjtime),
	DENY(shmget),
	DENY(msgget),
	DENY(semget),
	DENY(mq_open),
	DENY(fanotify_init),
	DENY(reboot),
	DENY(swapon),
	DENY(swapoff),
	DENY(io_uring_setup),
	/* Its flags are in memory, out of a filter's sight: glibc takes clone instead. */
	UNLESS_EQUAL_SKIP(SYS_clone3, 1),
	REFUSE(ENOSYS),
#ifndef __SANITIZE_ADDRESS__
	/* The leak check looks at its own process by it. */
	DENY(ptrace),
#endif
	UNLESS_EQUAL_SKIP(SYS_clone, 3),
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
	BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, NEW_NAMESPACES, 0, 1),
	REFUSE(EPERM),
	RETURN(SECCOMP_RET_ALLOW),
};

int sandbox_enter(void)
{
	struct sock_fprog program = {sizeof(filter) / sizeof(filter[0]), (void *)filter};
	long r;

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	r = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
	if (r < 0)
		return -errno;
	return r > 0 ? -EBUSY : 0;
}

#else

int sandbox_enter(void)
{
	return -EOPNOTSUPP;
}

#endif

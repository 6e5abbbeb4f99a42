/* Runs inside a pod as root and tries what must not work. One line for each attempt: its name,
 * and "done" or the errno. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

struct attr { uint64_t set, clr, propagation, userns; };

static const char *name_of(int number)
{
	static char other[16];
	switch (number) {
	case EPERM: return "EPERM";
	case ENOENT: return "ENOENT";
	case ESRCH: return "ESRCH";
	case EACCES: return "EACCES";
	case EINVAL: return "EINVAL";
	case ENOSPC: return "ENOSPC";
	case EROFS: return "EROFS";
	case EBUSY: return "EBUSY";
	case ENOKEY: return "ENOKEY";
	case EDQUOT: return "EDQUOT";
	}
	snprintf(other, sizeof other, "%d", number);
	return other;
}

static void tell(const char *what, long ret)
{
	printf("%s: %s\n", what, ret < 0 ? name_of(errno) : "done");
	fflush(stdout);
}

static long write_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	long ret = write(fd, text, strlen(text));
	close(fd);
	return ret;
}

static void mounts(void)
{
	struct attr clear = { .clr = 1 /* MOUNT_ATTR_RDONLY */ };
	tell("clear", syscall(442, AT_FDCWD, "/ro", 0, &clear, sizeof clear));
	tell("clear-all", syscall(442, AT_FDCWD, "/", 0x8000 /* AT_RECURSIVE */, &clear, sizeof clear));
	tell("remount", mount("none", "/ro", 0, MS_REMOUNT | MS_BIND, 0));
	tell("remount-fs", mount("none", "/ro", 0, MS_REMOUNT, 0));
	tell("write", write_to("/ro/file", "x"));
	tell("umount", umount2("/ro", 0));
	tell("detach", umount2("/ro", MNT_DETACH));
	tell("detach-dev", umount2("/dev", MNT_DETACH));
	tell("detach-proc-sys", umount2("/proc/sys", MNT_DETACH));
	tell("unshare-ns-umount", unshare(CLONE_NEWNS) < 0 ? -1 : umount2("/ro", MNT_DETACH));
	int tree = syscall(428, AT_FDCWD, "/ro", 1 /* OPEN_TREE_CLONE */);
	tell("clone-clear", tree < 0 ? -1 :
		syscall(442, tree, "", 0x1000 /* AT_EMPTY_PATH */, &clear, sizeof clear));
	tell("proc", mount("proc", "/tmp", "proc", 0, 0));
	tell("sysfs", mount("sysfs", "/tmp", "sysfs", 0, 0) < 0 ? -1 : write_to("/tmp/kernel/mm/ksm/run", "0"));
	umount2("/tmp", MNT_DETACH);
	tell("mknod", mknod("/tmp/mem", S_IFCHR | 0600, 1 << 8 | 1));
}

static void namespaces(void)
{
	tell("max-user", write_to("/proc/sys/user/max_user_namespaces", "1000"));
	if (!mount("proc", "/tmp", "proc", 0, 0))
		tell("max-user-fresh", write_to("/tmp/sys/user/max_user_namespaces", "1000"));
	tell("unshare", unshare(CLONE_NEWUSER));
	tell("core-pattern", write_to("/proc/sys/kernel/core_pattern", "|/evil"));
	tell("oom-score", write_to("/proc/self/oom_score_adj", "-1000"));
}

static long list(const char *path)
{
	DIR *dir = opendir(path);
	if (!dir)
		return -1;
	errno = 0;
	for (struct dirent *e; (e = readdir(dir));) {
		if (e->d_name[0] != '.')
			return 0;
	}
	return errno ? -1 : 0;
}

static void look(int pid)
{
	char path[64], buf[64], other[64];
	const char *files[] = { "mem", "environ", "auxv" };
	const char *links[] = { "exe", "cwd", "root" };
	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	tell("fd", list(path));
	for (int i = 0; i < 3; i++) {
		snprintf(path, sizeof path, "/proc/%d/%s", pid, files[i]);
		int fd = open(path, O_RDONLY);
		tell(files[i], fd < 0 ? -1 : read(fd, buf, 1));
		snprintf(path, sizeof path, "/proc/%d/%s", pid, links[i]);
		tell(links[i], readlink(path, buf, sizeof buf));
	}
	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	tell("open-exe", open(path, O_RDONLY));
	struct iovec here = { other, 1 }, there = { (void *)0x400000, 1 };
	tell("vm-read", process_vm_readv(pid, &here, 1, &there, 1, 0));
	int pidfd = syscall(SYS_pidfd_open, pid, 0);
	tell("getfd", syscall(SYS_pidfd_getfd, pidfd, 0, 0));
	tell("setns", setns(pidfd, CLONE_NEWNS));
	tell("seize", ptrace(PTRACE_SEIZE, pid, 0, 0));
	tell("attach", ptrace(PTRACE_ATTACH, pid, 0, 0));
}

/* Stops or kills whatever of the pod's PID namespace it may, but itself, PID 1 and `spare`. */
static void storm(int signal, int spare)
{
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		DIR *dir = opendir("/proc");
		for (struct dirent *e; dir && (e = readdir(dir));) {
			int pid = atoi(e->d_name);
			if (pid > 1 && pid != getpid() && pid != spare)
				kill(pid, signal);
		}
		closedir(dir);
	}
}

/* Is PID 1 and never reaps. */
static void zombies(int count)
{
	for (int i = 0; i < count; i++) {
		if (!fork())
			_exit(0);
	}
	printf("ready\n");
	fflush(stdout);
	for (;;)
		pause();
}

static void drop(int uid)
{
	char line[256];
	if (setresuid(uid, uid, uid))
		tell("setresuid", -1);
	FILE *status = fopen("/proc/self/status", "r");
	while (status && fgets(line, sizeof line, status)) {
		if (!strncmp(line, "CapEff", 6))
			fputs(line, stdout);
	}
	printf("securebits: %d\n", prctl(PR_GET_SECUREBITS));
}

static long key(const char *name)
{
	return syscall(SYS_add_key, "user", name, "secret", 6L, KEY_SPEC_SESSION_KEYRING);
}

/* What of the host's key and of its neighbours' the process gets at, and its session keyring. */
static void keys(long host)
{
	static const char *const names[] = { "host", "inside" };
	char text[64], line[64];
	printf("session: %ld\n", syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID,
		KEY_SPEC_SESSION_KEYRING, 0L));
	tell("read", syscall(SYS_keyctl, KEYCTL_READ, host, text, sizeof text));
	tell("link", syscall(SYS_keyctl, KEYCTL_LINK, host, KEY_SPEC_SESSION_KEYRING));
	for (int i = 0; i < 2; i++) {
		snprintf(line, sizeof line, "search %s", names[i]);
		tell(line, syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, "user",
			names[i], 0L));
	}
}

/* Has as many keys as it may. */
static void fill(void)
{
	char name[16];
	for (int i = 0; snprintf(name, sizeof name, "%d", i) && key(name) > 0; i++)
		;
	tell("full", -1);
	pause();
}

int main(int argc, char **argv)
{
	int number = argc > 2 ? atoi(argv[2]) : 0;
	if (argc < 2)
		return 2;
	if (!strcmp(argv[1], "mounts"))
		mounts();
	else if (!strcmp(argv[1], "namespaces"))
		namespaces();
	else if (!strcmp(argv[1], "look"))
		look(number);
	else if (!strcmp(argv[1], "storm"))
		storm(number, argc > 3 ? atoi(argv[3]) : 0);
	else if (!strcmp(argv[1], "zombies"))
		zombies(number);
	else if (!strcmp(argv[1], "drop"))
		drop(number);
	else if (!strcmp(argv[1], "key"))
		printf("%ld\n", key(argv[2]));
	else if (!strcmp(argv[1], "keys"))
		keys(number);
	else if (!strcmp(argv[1], "fill"))
		fill();
	else if (!strcmp(argv[1], "kill"))
		tell("kill", kill(number, atoi(argv[3])));
	else
		return 2;
	return 0;
}

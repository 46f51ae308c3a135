/*
 * Loaded into QEMU with LD_PRELOAD, this maps guest memory as a restore plan
 * says instead of as one file, without a change to QEMU (thesis 5.3.8, 5.4).
 *
 * QEMU opens the file of its memory backend, which may not be its to open: here
 * that gives a descriptor that it has inherited. It then maps the file once, with
 * mmap, as it is unless one of these takes the place of that call:
 *
 *   overlay  anonymous memory for all of it, the memory file over every stretch
 *            without zero pages, and each loading region from its place in the
 *            loading-set file;
 *   faults   anonymous memory whose page faults a handler serves, to which a
 *            userfaultfd is sent in Firecracker's protocol.
 *
 * What to do is in the environment; numbers are inherited descriptors:
 *
 *   VOLLEY_SHIM_MEMORY    the memory file, which QEMU knows as
 *                         /volley/guest-memory
 *   VOLLEY_SHIM_PLAN      overlay: the plan, as docs/formats/snapshot.md has it
 *   VOLLEY_SHIM_LOADING   overlay: the loading-set file
 *   VOLLEY_SHIM_PROGRESS  overlay: a pipe; each byte read from it says that the
 *                         next CHUNK bytes of the loading-set file are in the
 *                         page cache, to be put into the page tables
 *   VOLLEY_SHIM_HUGE      overlay: 1 backs long zero regions by huge pages
 *   VOLLEY_SHIM_FAULTS    faults: the path of the handler's socket
 *   VOLLEY_SHIM_UFFD      faults: /dev/userfaultfd, where the host has it
 *   VOLLEY_SHIM_RANDOM    neither: 1 keeps the kernel from reading ahead
 *
 * Whatever goes wrong ends QEMU before the guest runs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

enum { PAGE = 4096, CHUNK = 1 << 20, HUGE = 2 << 20, PLAN_VERSION = 1 };
#define MEMORY_PATH "/volley/guest-memory"

enum source { ZERO, MEMORY, LOADING };

/* The encoding of a plan is little-endian, and so is every host of this. */
struct plan {
	char magic[8];
	uint32_t version, count;
	uint64_t pages, loading_pages;
	struct region {
		uint64_t start, pages, offset;
		uint32_t source, group;
	} regions[];
};

static struct {
	void *base;
	size_t size;
	const struct plan *plan;
	int file, loading, progress;
} guest = {.file = -1};

static void fail(const char *what)
{
	dprintf(STDERR_FILENO, "volley-shim: %s: %s\n", what, strerror(errno));
	_exit(97);
}

static void refuse(const char *what)
{
	dprintf(STDERR_FILENO, "volley-shim: %s\n", what);
	_exit(97);
}

/* setting returns the number that a variable has, or -1. */
static int setting(const char *name)
{
	const char *text = getenv(name);
	return text && *text ? atoi(text) : -1;
}

/* Calls of the system, past this library's own. */
static void *map(void *at, size_t size, int prot, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, at, size, prot, flags, fd, offset);
}

static int advise(void *at, size_t size, int advice)
{
	return syscall(SYS_madvise, at, size, advice);
}

static void lay(uint64_t start, uint64_t pages, int fd, uint64_t offset)
{
	int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE | (fd < 0 ? MAP_ANONYMOUS : 0);
	void *at = (char *)guest.base + start * PAGE;

	if (map(at, pages * PAGE, PROT_READ | PROT_WRITE, flags, fd, offset * PAGE) != at)
		fail("map a region of the plan");
}

static const struct plan *read_plan(int fd, size_t size)
{
	struct stat st;
	const struct plan *p;

	if (fstat(fd, &st) < 0 || (p = map(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0)) == MAP_FAILED)
		fail("read plan");
	if ((size_t)st.st_size < sizeof *p || memcmp(p->magic, "VOLLEYPL", 8) || p->version != PLAN_VERSION ||
	    (size_t)st.st_size != sizeof *p + p->count * sizeof p->regions[0])
		refuse("not a plan of a version that this library knows");
	if (p->pages * PAGE != size)
		refuse("the plan is for guest memory of another size");
	for (uint32_t i = 0; i < p->count; i++) {
		const struct region *r = &p->regions[i];
		uint64_t limit = r->source == LOADING ? p->loading_pages : p->pages;
		if (r->source > LOADING || r->start > p->pages || r->pages > p->pages - r->start ||
		    (r->source != ZERO && (r->offset > limit || r->pages > limit - r->offset)))
			refuse("a region of the plan is outside of its file or of guest memory");
	}
	return p;
}

/* by_offset orders loading regions as they are in their file. */
static int by_offset(const void *a, const void *b)
{
	const struct region *x = *(const struct region *const *)a, *y = *(const struct region *const *)b;
	return (x->offset > y->offset) - (x->offset < y->offset);
}

/* populate follows the loader through the loading-set file. */
static void *populate(void *unused)
{
	const struct plan *p = guest.plan;
	const struct region **order = calloc(p->count + 1, sizeof *order);
	uint64_t ready = 0, done = 0; /* pages of the file */
	size_t n = 0, at = 0;
	char steps[64];
	ssize_t got;

	(void)unused;
	if (!order)
		return NULL;
	for (uint32_t i = 0; i < p->count; i++)
		if (p->regions[i].source == LOADING)
			order[n++] = &p->regions[i];
	qsort(order, n, sizeof *order, by_offset);
	while ((got = read(guest.progress, steps, sizeof steps)) > 0 || (got < 0 && errno == EINTR)) {
		ready += got > 0 ? (uint64_t)got * (CHUNK / PAGE) : 0;
		for (; at < n && done < ready; ) {
			const struct region *r = order[at];
			uint64_t skip = done - r->offset, want = r->pages - skip;
			if (want > ready - done)
				want = ready - done;
			/* An error only means that the guest faults on it itself. */
			advise((char *)guest.base + (r->start + skip) * PAGE, want * PAGE, MADV_POPULATE_READ);
			done += want;
			if (skip + want == r->pages)
				at++;
		}
	}
	close(guest.progress);
	free(order);
	return NULL;
}

static void lay_overlay(int memory)
{
	const struct plan *p = guest.plan;
	int huge = setting("VOLLEY_SHIM_HUGE") == 1;

	lay(0, p->pages, -1, 0);
	/* The guest touches its zero pages here and there: making 2 MiB of each
	   would cost more than the faults that it spares. */
	advise(guest.base, guest.size, MADV_NOHUGEPAGE);
	for (uint32_t i = 0; i < p->count; i++) {
		uint32_t first = i;
		if (p->regions[i].source == ZERO) {
			if (huge && p->regions[i].pages * PAGE >= 2 * HUGE)
				advise((char *)guest.base + p->regions[i].start * PAGE, p->regions[i].pages * PAGE, MADV_HUGEPAGE);
			continue;
		}
		while (i + 1 < p->count && p->regions[i + 1].source != ZERO)
			i++;
		uint64_t start = p->regions[first].start;
		lay(start, p->regions[i].start + p->regions[i].pages - start, memory, start);
	}
	for (uint32_t i = 0; i < p->count; i++)
		if (p->regions[i].source == LOADING)
			lay(p->regions[i].start, p->regions[i].pages, guest.loading, p->regions[i].offset);
	guest.progress = setting("VOLLEY_SHIM_PROGRESS");
	if (guest.progress >= 0) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, populate, NULL))
			refuse("no thread for putting the loading set into page tables");
		pthread_detach(thread);
	}
}

static void hand_over_faults(const char *path)
{
	int dev = setting("VOLLEY_SHIM_UFFD"), flags = O_CLOEXEC | O_NONBLOCK;
	int fd = dev >= 0 ? ioctl(dev, USERFAULTFD_IOC_NEW, flags) : syscall(SYS_userfaultfd, flags);
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE};
	struct uffdio_register reg = {.range = {(uintptr_t)guest.base, guest.size}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	char text[256], control[CMSG_SPACE(sizeof fd)] = {0};
	struct iovec part = {text, 0};
	struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
		fail("make a userfaultfd");
	lay(0, guest.size / PAGE, -1, 0);
	advise(guest.base, guest.size, MADV_NOHUGEPAGE);
	if (ioctl(fd, UFFDIO_REGISTER, &reg) < 0)
		fail("register guest memory with a userfaultfd");
	part.iov_len = snprintf(text, sizeof text,
		"[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0,\"page_size\":%d}]",
		(unsigned long long)(uintptr_t)guest.base, guest.size, PAGE);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	strncpy(addr.sun_path, path, sizeof addr.sun_path - 1);
	if (connect(sock, (struct sockaddr *)&addr, sizeof addr) < 0)
		fail("connect to the handler of page faults");
	if (sendmsg(sock, &msg, MSG_NOSIGNAL) != (ssize_t)part.iov_len)
		fail("hand a userfaultfd over");
	close(fd);
}

int open64(const char *path, int flags, ...)
{
	int fd, memory = strcmp(path, MEMORY_PATH) ? -1 : setting("VOLLEY_SHIM_MEMORY");
	va_list args;

	if (memory >= 0)
		return guest.file = fcntl(memory, F_DUPFD_CLOEXEC, 0);
	va_start(args, flags);
	fd = syscall(SYS_openat, AT_FDCWD, path, flags | O_LARGEFILE, va_arg(args, mode_t));
	va_end(args);
	return fd;
}

int open(const char *path, int flags, ...) __attribute__((alias("open64")));

void *mmap64(void *at, size_t size, int prot, int flags, int fd, off_t offset)
{
	const char *faults = getenv("VOLLEY_SHIM_FAULTS");
	int plan = setting("VOLLEY_SHIM_PLAN");

	if (guest.base || !(flags & MAP_FIXED) || fd < 0 || fd != guest.file)
		return map(at, size, prot, flags, fd, offset);
	if (offset != 0)
		refuse("QEMU maps guest memory in pieces: this library does not know how");
	guest.base = at;
	guest.size = size;
	if (faults && *faults) {
		hand_over_faults(faults);
	} else if (plan >= 0) {
		guest.loading = setting("VOLLEY_SHIM_LOADING");
		guest.plan = read_plan(plan, size);
		lay_overlay(fd);
	} else {
		at = map(at, size, prot, flags, fd, offset);
		if (at != MAP_FAILED && setting("VOLLEY_SHIM_RANDOM") == 1)
			advise(at, size, MADV_RANDOM);
	}
	return at;
}

void *mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset) __attribute__((alias("mmap64")));

/* QEMU asks for huge pages for all of guest memory: here the plan decides. */
int madvise(void *at, size_t size, int advice)
{
	char *base = guest.base;
	if (advice == MADV_HUGEPAGE && base && (char *)at < base + guest.size && (char *)at + size > base)
		return 0;
	return advise(at, size, advice);
}

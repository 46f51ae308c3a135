//go:build ignore

/*
 * Keeps a program to the network addresses of its endpoint, by taking the place
 * of functions of the C library. preload.go says what it does and for whom.
 *
 * It reads VOLLEY_ADDRESS and VOLLEY_ADDRESS6 once. Without either it changes
 * nothing. It allocates no memory and takes no locks, so that it may be called
 * after fork and from signal handlers as the functions that it overrides may.
 *
 * The line on top keeps Go's tools from taking this file for a part of the Go
 * package beside it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

/* What this endpoint has. */
static struct in_addr own4;
static struct in6_addr own6;
static int has4, has6;

static int (*real_bind)(int, const struct sockaddr *, socklen_t);
static int (*real_connect)(int, const struct sockaddr *, socklen_t);
static int (*real_listen)(int, int);
static ssize_t (*real_sendto)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
static ssize_t (*real_sendmsg)(int, const struct msghdr *, int);

/*
 * Two threads may do this at the same time: both then write the same. Other
 * libraries' constructors may call the functions before this one's runs.
 */
static void setup(void)
{
	static int done;
	const char *text;

	if (__atomic_load_n(&done, __ATOMIC_ACQUIRE))
		return;
	real_bind = dlsym(RTLD_NEXT, "bind");
	real_connect = dlsym(RTLD_NEXT, "connect");
	real_listen = dlsym(RTLD_NEXT, "listen");
	real_sendto = dlsym(RTLD_NEXT, "sendto");
	real_sendmsg = dlsym(RTLD_NEXT, "sendmsg");
	text = getenv("VOLLEY_ADDRESS");
	has4 = text && inet_pton(AF_INET, text, &own4) == 1;
	text = getenv("VOLLEY_ADDRESS6");
	has6 = text && inet_pton(AF_INET6, text, &own6) == 1;
	__atomic_store_n(&done, 1, __ATOMIC_RELEASE);
}

__attribute__((constructor)) static void load(void) { setup(); }

/* An address of either family, to be passed to the kernel. */
union address {
	struct sockaddr any;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
};

static struct in6_addr map(struct in_addr a)
{
	struct in6_addr m = IN6ADDR_ANY_INIT;

	m.s6_addr[10] = m.s6_addr[11] = 0xff;
	memcpy(&m.s6_addr[12], &a, sizeof a);
	return m;
}

static struct in_addr unmap(const struct in6_addr *m)
{
	struct in_addr a;

	memcpy(&a, &m->s6_addr[12], sizeof a);
	return a;
}

static int here4(struct in_addr a)
{
	return a.s_addr == htonl(INADDR_ANY) || (ntohl(a.s_addr) >> 24) == IN_LOOPBACKNET;
}

/* Whether an address is "this host". */
static int is_here(const union address *a)
{
	if (a->any.sa_family == AF_INET)
		return here4(a->in.sin_addr);
	if (IN6_IS_ADDR_V4MAPPED(&a->in6.sin6_addr))
		return here4(unmap(&a->in6.sin6_addr));
	return IN6_IS_ADDR_UNSPECIFIED(&a->in6.sin6_addr) || IN6_IS_ADDR_LOOPBACK(&a->in6.sin6_addr);
}

/*
 * Puts the endpoint's own address, of the kind that a is of, in its place, and
 * keeps the port. Returns 0 if it has none.
 */
static int make_own(union address *a)
{
	if (a->any.sa_family == AF_INET) {
		a->in.sin_addr = own4;
		return has4;
	}
	if (has6 && !IN6_IS_ADDR_V4MAPPED(&a->in6.sin6_addr)) {
		a->in6.sin6_addr = own6;
		return 1;
	}
	a->in6.sin6_addr = map(own4);
	return has4;
}

/* Whether an address is the endpoint's. */
static int is_own(const union address *a)
{
	union address own = *a;

	if (!make_own(&own))
		return 0;
	if (a->any.sa_family == AF_INET)
		return a->in.sin_addr.s_addr == own.in.sin_addr.s_addr;
	return IN6_ARE_ADDR_EQUAL(&a->in6.sin6_addr, &own.in6.sin6_addr);
}

/* Copies a caller's address if it is an internet one and whole. */
static int take(union address *to, const struct sockaddr *from, socklen_t length)
{
	if (!(has4 || has6) || !from || length < sizeof to->in)
		return 0;
	memset(to, 0, sizeof *to);
	if (from->sa_family == AF_INET)
		memcpy(&to->in, from, sizeof to->in);
	else if (from->sa_family == AF_INET6 && length >= sizeof to->in6 - sizeof to->in6.sin6_scope_id)
		memcpy(&to->in6, from, length < sizeof to->in6 ? length : sizeof to->in6);
	else
		return 0;
	return 1;
}

static socklen_t length_of(const union address *a)
{
	return a->any.sa_family == AF_INET ? sizeof a->in : sizeof a->in6;
}

/*
 * Binds a TCP or UDP socket that has no address yet to the endpoint's, with its
 * port left open. peer, if there is one, is where the socket is to send to: an
 * IPv6 socket needs a mapped address for an IPv4 peer. Keeps errno.
 */
static void ensure_bound(int fd, const union address *peer)
{
	union address name;
	socklen_t length = sizeof name;
	int before = errno, yes = 1, no = 0, type = 0;
	socklen_t type_length = sizeof type;

	if (!(has4 || has6))
		return;
	memset(&name, 0, sizeof name);
	if (getsockname(fd, &name.any, &length) != 0 ||
	    (name.any.sa_family != AF_INET && name.any.sa_family != AF_INET6) ||
	    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_length) != 0 ||
	    (type != SOCK_STREAM && type != SOCK_DGRAM)) {
		errno = before;
		return;
	}
	if (name.any.sa_family == AF_INET ? name.in.sin_addr.s_addr == htonl(INADDR_ANY)
	                                  : IN6_IS_ADDR_UNSPECIFIED(&name.in6.sin6_addr)) {
		if (peer && peer->any.sa_family == AF_INET6 && name.any.sa_family == AF_INET6 &&
		    IN6_IS_ADDR_V4MAPPED(&peer->in6.sin6_addr))
			name.in6.sin6_addr = peer->in6.sin6_addr;
		if (make_own(&name)) {
			setsockopt(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
			real_bind(fd, &name.any, length_of(&name));
			setsockopt(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, &no, sizeof no);
		}
	}
	errno = before;
}

/*
 * Prepares sending or connecting to an address. Returns what to pass on: the
 * caller's, or to if that has been made the endpoint's own.
 */
static const struct sockaddr *prepare(int fd, const struct sockaddr *address, socklen_t *length, union address *to)
{
	int mine = 0;

	if (!take(to, address, *length))
		return address;
	if (is_here(to))
		mine = make_own(to);
	ensure_bound(fd, to);
	if (!mine)
		return address;
	*length = length_of(to);
	return &to->any;
}

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
	union address a;

	setup();
	if (!take(&a, address, length))
		return real_bind(fd, address, length);
	if (is_here(&a) ? !make_own(&a) : !is_own(&a)) {
		errno = EPERM;
		return -1;
	}
	return real_bind(fd, &a.any, length_of(&a));
}

int connect(int fd, const struct sockaddr *address, socklen_t length)
{
	union address to;

	setup();
	address = prepare(fd, address, &length, &to);
	return real_connect(fd, address, length);
}

int listen(int fd, int backlog)
{
	setup();
	ensure_bound(fd, NULL);
	return real_listen(fd, backlog);
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length)
{
	union address to;

	setup();
	address = prepare(fd, address, &length, &to);
	return real_sendto(fd, data, size, flags, address, length);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	union address to;
	struct msghdr copy;

	setup();
	if (!message || !message->msg_name)
		return real_sendmsg(fd, message, flags);
	copy = *message;
	copy.msg_name = (void *)prepare(fd, copy.msg_name, &copy.msg_namelen, &to);
	return real_sendmsg(fd, &copy, flags);
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)
{
	unsigned int i;

	/* One by one, as each has an address of its own; most programs send few. */
	for (i = 0; i < count; i++) {
		ssize_t n = sendmsg(fd, &messages[i].msg_hdr, flags);

		if (n < 0)
			return i > 0 ? (int)i : -1;
		messages[i].msg_len = n;
	}
	return (int)i;
}

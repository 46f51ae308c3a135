/*
 * Does with sockets what its arguments say, one after the other, and prints
 * what came of each: TYPE[6] makes one, "bind ADDRESS PORT" and so on use it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static struct sockaddr_storage address;
static socklen_t length;

static void parse(const char *text, const char *port)
{
	struct sockaddr_in *in = (void *)&address;
	struct sockaddr_in6 *in6 = (void *)&address;

	memset(&address, 0, sizeof address);
	if (strchr(text, ':')) {
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(atoi(port));
		inet_pton(AF_INET6, text, &in6->sin6_addr);
		length = sizeof *in6;
	} else {
		in->sin_family = AF_INET;
		in->sin_port = htons(atoi(port));
		inet_pton(AF_INET, text, &in->sin_addr);
		length = sizeof *in;
	}
}

static void print(const struct sockaddr_storage *a)
{
	char text[INET6_ADDRSTRLEN];
	const struct sockaddr_in *in = (const void *)a;
	const struct sockaddr_in6 *in6 = (const void *)a;
	int port = ntohs(a->ss_family == AF_INET ? in->sin_port : in6->sin6_port);

	inet_ntop(a->ss_family, a->ss_family == AF_INET ? (const void *)&in->sin_addr : (const void *)&in6->sin6_addr, text, sizeof text);
	if (port >= 32768)
		printf("%s some", text);
	else
		printf("%s %d", text, port);
}

int main(int argc, char **argv)
{
	int fd = -1, i, r = 0;

	for (i = 1; i < argc && r >= 0; i++) {
		struct iovec data = { "x", 1 };
		struct mmsghdr message = { { &address, 0, &data, 1, NULL, 0, 0 }, 0 };
		struct sockaddr_storage name;
		socklen_t size = sizeof name;
		const char *what = argv[i];

		if (strncmp(what, "tcp", 3) == 0 || strncmp(what, "udp", 3) == 0) {
			r = fd = socket(what[3] == '6' ? AF_INET6 : AF_INET, what[0] == 't' ? SOCK_STREAM : SOCK_DGRAM, 0);
			continue;
		}
		if (strcmp(what, "name") == 0) {
			r = getsockname(fd, (void *)&name, &size);
			if (r == 0)
				print(&name);
			continue;
		}
		if (strcmp(what, "sender") == 0) {
			r = recvfrom(fd, &r, 1, MSG_DONTWAIT, (void *)&name, &size);
			if (r > 0)
				print(&name);
			continue;
		}
		if (strcmp(what, "listen") == 0) {
			r = listen(fd, 1);
			continue;
		}
		if (i + 2 >= argc)
			return 2;
		parse(argv[i + 1], argv[i + 2]);
		message.msg_hdr.msg_namelen = length;
		i += 2;
		if (strcmp(what, "bind") == 0)
			r = bind(fd, (void *)&address, length);
		else if (strcmp(what, "connect") == 0)
			r = connect(fd, (void *)&address, length);
		else if (strcmp(what, "sendto") == 0)
			r = sendto(fd, "x", 1, 0, (void *)&address, length);
		else if (strcmp(what, "sendmsg") == 0)
			r = sendmsg(fd, &message.msg_hdr, 0);
		else if (strcmp(what, "sendmmsg") == 0)
			r = sendmmsg(fd, &message, 1, 0);
		else
			return 2;
	}
	if (r < 0)
		printf("%s", strerrorname_np(errno));
	return 0;
}

/* The floor: an echo server as the manual pages have it. One thread, one level-triggered epoll, one buffer; what a
   socket does not take is kept, and nothing more is read from it until that is gone.

   Prints its port, and serves until it is killed. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUFFER (256 * 1024)
#define EVENTS 256
#define BACKLOG 1024

struct client {
    int fd;
    char *unsent; /* NULL: nothing waits */
    size_t start, end;
};

static int epoll;

static void give_up(const char *what)
{
    perror(what);
    exit(1);
}

static int listen_anywhere(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0 ||
        bind(fd, (struct sockaddr *)&address, size) != 0 || listen(fd, BACKLOG) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) != 0)
        give_up("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static void watch(struct client *client, int how, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = client};
    if (epoll_ctl(epoll, how, client->fd, &event) != 0)
        give_up("epoll_ctl");
}

static void accept_one(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0)
        return;
    struct client *client = calloc(1, sizeof *client);
    if (!client)
        give_up("calloc");
    client->fd = fd;
    watch(client, EPOLL_CTL_ADD, EPOLLIN);
}

static void drop(struct client *client)
{
    close(client->fd);
    free(client->unsent);
    free(client);
}

/* How much was taken; -1 if the peer is gone. */
static ssize_t give(int fd, const char *data, size_t size)
{
    ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
    return sent >= 0 ? sent : errno == EAGAIN || errno == EINTR ? 0 : -1;
}

static void keep(struct client *client, const char *data, size_t size)
{
    client->unsent = malloc(size);
    if (!client->unsent)
        give_up("malloc");
    memcpy(client->unsent, data, size);
    client->start = 0;
    client->end = size;
    watch(client, EPOLL_CTL_MOD, EPOLLOUT);
}

static void echo(struct client *client)
{
    static char buffer[BUFFER];
    ssize_t got = recv(client->fd, buffer, sizeof buffer, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    ssize_t sent = got > 0 ? give(client->fd, buffer, (size_t)got) : -1;
    if (sent < 0)
        drop(client);
    else if (sent < got)
        keep(client, buffer + sent, (size_t)(got - sent));
}

static void go_on(struct client *client)
{
    ssize_t sent = give(client->fd, client->unsent + client->start, client->end - client->start);
    if (sent < 0) {
        drop(client);
        return;
    }
    client->start += (size_t)sent;
    if (client->start == client->end) {
        free(client->unsent);
        client->unsent = NULL;
        watch(client, EPOLL_CTL_MOD, EPOLLIN);
    }
}

int main(void)
{
    struct epoll_event events[EVENTS];
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct client listener = {.fd = listen_anywhere()};
    watch(&listener, EPOLL_CTL_ADD, EPOLLIN);
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        if (count < 0 && errno != EINTR)
            give_up("epoll_wait");
        for (int i = 0; i < count; i++) {
            struct client *client = events[i].data.ptr;
            if (client == &listener)
                accept_one(listener.fd);
            else if (client->unsent)
                go_on(client);
            else
                echo(client);
        }
    }
}

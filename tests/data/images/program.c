/* Holds open one file of every kind, and waits. Static, since the container has nothing else:
 * gcc -static -o prog program.c */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <netinet/in.h>
#include <arpa/inet.h>
int main(void) {
    int log = open("/data/log", O_WRONLY|O_APPEND|O_CREAT, 0644);           /* 3 */
    write(log, "one\n", 4);
    int a = open("/data/file", O_RDWR|O_CREAT, 0644); write(a, "0123456789", 10); lseek(a, 4, 0); /* 4 */
    int b = open("/data/file", O_RDWR);                                     /* 5 */
    int p[2]; pipe(p);                                                      /* 6 7 */
    int s[2]; socketpair(AF_UNIX, SOCK_STREAM, 0, s);                       /* 8 9 */
    int t = socket(AF_INET, SOCK_STREAM, 0);                                /* 10 */
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(8080) };
    inet_pton(AF_INET, "127.0.0.1", &in.sin_addr);
    bind(t, (void*)&in, sizeof in); listen(t, 5);
    int e = eventfd(5, 0);                                                  /* 11 */
    int ep = epoll_create1(0);                                              /* 12 */
    struct epoll_event ev = { .events = EPOLLIN, .data.u64 = 7 };
    epoll_ctl(ep, EPOLL_CTL_ADD, e, &ev);
    int tf = timerfd_create(CLOCK_MONOTONIC, 0);                            /* 13 */
    int m = memfd_create("shared", 0); ftruncate(m, 4096);                  /* 14 */
    int gone = open("/data/gone", O_RDWR|O_CREAT, 0600); write(gone, "x", 1); unlink("/data/gone"); /* 15 */
    mkfifo("/data/fifo", 0600); int ff = open("/data/fifo", O_RDWR);        /* 16 */
    int mp = open("/data/mapped", O_RDWR|O_CREAT, 0644); ftruncate(mp, 4096); /* 17 */
    void *map = mmap(0, 4096, PROT_READ, MAP_SHARED, mp, 0); (void)map;
    int d = open("/data", O_RDONLY|O_DIRECTORY);                            /* 18 */
    int un = socket(AF_UNIX, SOCK_STREAM, 0);                               /* 19 */
    struct sockaddr_un ua = { .sun_family = AF_UNIX, .sun_path = "/data/sock" };
    bind(un, (void*)&ua, sizeof ua); listen(un, 5);
    int nul = open("/dev/null", O_RDWR);                                    /* 20 */
    int pt = open("/dev/ptmx", O_RDWR|O_NOCTTY);                            /* 21 */
    int zero = 0; ioctl(pt, 0x40045431, &zero);
    int lk = open("/data/lock", O_RDWR|O_CREAT, 0600); flock(lk, LOCK_EX);  /* 22 */
    (void)b;(void)tf;(void)ff;(void)d;(void)nul;(void)log;
    if (fork() == 0) { chdir("/data"); for (;;) pause(); }
    if (fork() == 0) { close(a); for (;;) pause(); }
    for (;;) pause();
}

/* Two TAP devices and a wire between them that takes its time: `wire FIRST SECOND MICROSECONDS`.
 *
 * Makes both devices, prints "ready", and passes each frame on so many microseconds after it came, in its order. Ends when standard
 * input does. (Kernels without `netem` can't delay frames themselves.) */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { FRAME = 9100, FRAMES = 8192 };

struct frame {
    int64_t due;
    int length;
    unsigned char bytes[FRAME];
};

/* Frames from one device to the other: a ring. */
struct way {
    struct frame *ring;
    unsigned first, count;
};

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static int open_tap(const char *name) {
    struct ifreq request = {0};
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    request.ifr_flags = IFF_TAP | IFF_NO_PI;
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    if (device < 0 || ioctl(device, TUNSETIFF, &request) < 0) {
        fprintf(stderr, "wire: make TAP device %s: %s (needs root)\n", name, strerror(errno));
        exit(1);
    }
    return device;
}

int main(int count, char **words) {
    struct way ways[2];
    int devices[2];
    int64_t delay;
    if (count != 4) {
        fprintf(stderr, "usage: wire FIRST SECOND MICROSECONDS\n");
        return 2;
    }
    delay = strtoll(words[3], NULL, 10) * 1000;
    /* Else the kernel wakes it 50 microseconds late. */
    prctl(PR_SET_TIMERSLACK, 1);
    for (int way = 0; way < 2; way++) {
        devices[way] = open_tap(words[1 + way]);
        ways[way] = (struct way){malloc(FRAMES * sizeof(struct frame)), 0, 0};
        if (!ways[way].ring) {
            fprintf(stderr, "wire: no memory\n");
            return 1;
        }
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd wanted[3] = {{STDIN_FILENO, POLLIN, 0}};
        int64_t next = INT64_MAX;
        for (int way = 0; way < 2; way++) {
            /* A full ring leaves frames in the device, which drops what is too much, as any wire does. */
            wanted[1 + way] = (struct pollfd){devices[way], ways[way].count < FRAMES ? POLLIN : 0, 0};
            if (ways[way].count && ways[way].ring[ways[way].first].due < next)
                next = ways[way].ring[ways[way].first].due;
        }
        int64_t left = next == INT64_MAX ? 0 : next - now();
        if (left < 0)
            left = 0;
        struct timespec limit = {left / 1000000000, left % 1000000000};
        if (ppoll(wanted, 3, next == INT64_MAX ? NULL : &limit, NULL) < 0 && errno != EINTR)
            return 1;
        /* Or a device is gone with its namespace. */
        if (wanted[0].revents || ((wanted[1].revents | wanted[2].revents) & POLLERR))
            return 0;
        for (int way = 0; way < 2; way++) {
            struct way *to = &ways[way];
            while ((wanted[1 + way].revents & POLLIN) && to->count < FRAMES) {
                struct frame *frame = &to->ring[(to->first + to->count) % FRAMES];
                ssize_t length = read(devices[way], frame->bytes, FRAME);
                if (length <= 0)
                    break;
                frame->length = (int)length;
                frame->due = now() + delay;
                to->count++;
            }
        }
        for (int way = 0; way < 2; way++) {
            struct way *from = &ways[way];
            int64_t time = now();
            while (from->count && from->ring[from->first].due <= time) {
                struct frame *frame = &from->ring[from->first];
                /* A device that is down or full loses the frame, as any wire does. */
                if (write(devices[1 - way], frame->bytes, (size_t)frame->length) < 0 && errno == EBADF)
                    return 1;
                from->first = (from->first + 1) % FRAMES;
                from->count--;
            }
        }
    }
}

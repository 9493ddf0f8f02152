/* Moves the clocks that one process reads: LD_PRELOAD of the daemon, and of nothing else.
 *
 * TORTURE_CLOCK names a file of two 64-bit integers: milliseconds that are added to CLOCK_REALTIME
 * and to CLOCK_BOOTTIME. The file is mapped, so that a change counts from the next reading on.
 * CLOCK_MONOTONIC, by which timers and the runtime wait, is left alone: libfaketime cannot move the
 * other two without it, and a time namespace cannot be moved at all once it has a process. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *moved_ms;

__attribute__((constructor)) static void map_file(void) {
    const char *path = getenv("TORTURE_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *at = mmap(NULL, 2 * sizeof *moved_ms, PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED)
        moved_ms = at;
    close(file);
}

int clock_gettime(clockid_t id, struct timespec *time) {
    int result = (int)syscall(SYS_clock_gettime, id, time);
    if (result != 0 || moved_ms == NULL || (id != CLOCK_REALTIME && id != CLOCK_BOOTTIME))
        return result;
    int64_t ms = moved_ms[id == CLOCK_BOOTTIME];
    int64_t ns = time->tv_nsec + ms % 1000 * 1000000;
    time->tv_sec += ms / 1000;
    if (ns < 0) {
        ns += 1000000000;
        time->tv_sec -= 1;
    } else if (ns >= 1000000000) {
        ns -= 1000000000;
        time->tv_sec += 1;
    }
    time->tv_nsec = ns;
    return 0;
}

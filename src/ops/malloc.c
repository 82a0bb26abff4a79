/* How much of what was freed the allocator keeps. Before `main`, when there is one thread; nothing is done where the
 * operator has said so already, and nothing but with glibc.
 *
 * By default glibc has up to eight arenas for each core (M_ARENA_MAX in mallopt(3)), each of which keeps what it once
 * had, and raises by itself up to which size memory is given back at once (M_MMAP_THRESHOLD), to all of a batch's
 * lists. A relay has some forty threads, most of them librdkafka's, which free what a worker allocated, and they
 * are seldom at it at once: 42 MiB in a drain became 38 to 39, at 1.06 of the rate (docs/performance.md).
 */
#include <stdlib.h>

#ifdef __GLIBC__
#include <malloc.h>
#include <unistd.h>

enum { KEPT_BYTES_MAX = 256 * 1024, ARENAS_MIN = 2, ARENAS_MAX = 4 };

__attribute__((constructor)) static void keep_little(void) {
    static const char *const said[] = {"MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_",
                                       "GLIBC_TUNABLES"};
    for (size_t i = 0; i < sizeof said / sizeof *said; i++) {
        if (getenv(said[i])) return;
    }
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (cores < ARENAS_MIN) cores = ARENAS_MIN;
    if (cores > ARENAS_MAX) cores = ARENAS_MAX;
    mallopt(M_ARENA_MAX, (int)cores);
    mallopt(M_MMAP_THRESHOLD, KEPT_BYTES_MAX);
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES_MAX);
}
#endif

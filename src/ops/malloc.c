/* How much of what was freed the allocator keeps. Before `main`, when there is one thread; what the operator has said
 * stays as it is, and with another C library than glibc nothing is done.
 *
 * By default glibc has up to eight arenas for each core (M_ARENA_MAX in mallopt(3)), each of which keeps what it once
 * had, and raises by itself up to which size memory is given back at once (M_MMAP_THRESHOLD), to the size of a batch's
 * lists. A relay has some forty threads, most of them librdkafka's, which free what a worker allocated, and they
 * are seldom at it at once. What it saves: docs/performance.md, "Memory".
 */
#include <stdlib.h>
#include <string.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#ifdef M_ARENA_MAX
#include <unistd.h>

enum { KEPT_BYTES_MAX = 256 * 1024, ARENAS_MIN = 2, ARENAS_MAX = 4 };

static void set(int what, int value, const char *variable, const char *tunable) {
    const char *const tunables = getenv("GLIBC_TUNABLES");
    if (getenv(variable) || (tunables && strstr(tunables, tunable))) return;
    mallopt(what, value);
}

__attribute__((constructor)) static void keep_little(void) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (cores < ARENAS_MIN) cores = ARENAS_MIN;
    if (cores > ARENAS_MAX) cores = ARENAS_MAX;
    set(M_ARENA_MAX, (int)cores, "MALLOC_ARENA_MAX", "glibc.malloc.arena_max");
    set(M_MMAP_THRESHOLD, KEPT_BYTES_MAX, "MALLOC_MMAP_THRESHOLD_", "glibc.malloc.mmap_threshold");
    set(M_TRIM_THRESHOLD, KEPT_BYTES_MAX, "MALLOC_TRIM_THRESHOLD_", "glibc.malloc.trim_threshold");
}
#endif

/* Waits by the clock that libfaketime shows.
 *
 * librdkafka waits by `cnd_timedwait`, until a time that `timespec_get` told. libfaketime (0.9.10) fakes the second
 * and does not know the first, so that under a clock that is ahead each such wait would last for as long as it is
 * ahead, which no wrong clock does: the kernel would wait by the same clock.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/syscall.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

typedef int wait_t(cnd_t *, mtx_t *, const struct timespec *);

/* None lasts longer: this one was told its end before the clock was set. */
static const long long LEFT_MAX_NS = 10000000000;

static long long ns(struct timespec t) { return t.tv_sec * 1000000000LL + t.tv_nsec; }

int cnd_timedwait(cnd_t *condition, mtx_t *mutex, const struct timespec *until) {
    struct timespec shown, real;
    clock_gettime(CLOCK_REALTIME, &shown);
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &real);
    long long left = ns(*until) - ns(shown);
    left = left < 0 ? 0 : left > LEFT_MAX_NS ? LEFT_MAX_NS : left;
    long long end = ns(real) + left;
    struct timespec then = {.tv_sec = end / 1000000000, .tv_nsec = end % 1000000000};
    return ((wait_t *)dlsym(RTLD_NEXT, "cnd_timedwait"))(condition, mutex, &then);
}

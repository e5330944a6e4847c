/* holder: a guest in which one process holds another domain's page mapped through a grant.
 *
 * It is /init of its own initramfs. Sector 100 of xvda holds the grant's number as text. One child
 * maps the page (/dev/xen/gntdev) and keeps it mapped; another only counts. Each line on the console
 * makes it answer one: what was read from the page, what has become of both children, and how many
 * lines of the kernel's log speak of a bug. The line "t" makes the first child touch its page before.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct map_grant { /* struct ioctl_gntdev_map_grant_ref (include/uapi/xen/gntdev.h) */
    uint32_t count, pad;
    uint64_t index;
    uint32_t domid, ref;
};
#define MAP_GRANT_REF _IOC(_IOC_NONE, 'G', 0, 24)

static struct {
    volatile uint64_t value, count, touched;
    volatile int error;
} *shared;
static volatile sig_atomic_t asked;

static int plain_file(const struct dirent *entry) { return entry->d_name[0] != '.'; }

static void load_modules(void)
{
    struct dirent **names;
    int count = scandir("/modules", &names, plain_file, alphasort);
    for (int i = 0; i < count; i++) {
        char path[320];
        snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        syscall(SYS_finit_module, fd, "", 0);
        close(fd);
    }
}

static uint32_t read_reference(void)
{
    static char sector[512] __attribute__((aligned(512)));
    for (int tries = 0; tries < 200; tries++) {
        int fd = open("/dev/xvda", O_RDONLY | O_DIRECT);
        if (fd >= 0 && pread(fd, sector, 512, 100 * 512) == 512)
            return (uint32_t)atoi(sector);
        usleep(50000);
    }
    return 0;
}

static void ask(int number) { (void)number, asked = 1; }

static void hold(uint32_t ref)
{
    struct map_grant map = {.count = 1, .domid = 0, .ref = ref};
    int fd = open("/dev/xen/gntdev", O_RDWR);
    signal(SIGUSR1, ask);
    if (fd < 0 || ioctl(fd, MAP_GRANT_REF, &map)) {
        shared->error = 1;
        _exit(1);
    }
    volatile uint64_t *page =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)map.index);
    if (page == MAP_FAILED) {
        shared->error = 2;
        _exit(2);
    }
    shared->value = *page;
    for (;;) {
        if (asked) {
            asked = 0;
            shared->touched = *page;
        }
        usleep(10000);
    }
}

static void count_on(void)
{
    for (;;) {
        shared->count++;
        usleep(1000);
    }
}

static int bugs(void)
{
    char line[8192];
    int found = 0, fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
    for (ssize_t size; (size = read(fd, line, sizeof line - 1)) > 0;) {
        line[size] = 0;
        found += strstr(line, "BUG") || strstr(line, "multicall") || strstr(line, "Oops");
    }
    close(fd);
    return found;
}

static const char *fate(pid_t child, char *text)
{
    static int status[2], known[2];
    int place = text[0] == 'w';
    if (!known[place] && waitpid(child, &status[place], WNOHANG) == child)
        known[place] = 1;
    if (!known[place])
        return "alive";
    snprintf(text, 32, WIFSIGNALED(status[place]) ? "signal-%d" : "exit-%d",
             WIFSIGNALED(status[place]) ? WTERMSIG(status[place]) : WEXITSTATUS(status[place]));
    return text;
}

int main(void)
{
    mkdir("/dev", 0755);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sys", "/sys", "sysfs", 0, NULL);
    load_modules();
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint32_t ref = read_reference();
    pid_t holder = fork();
    if (!holder)
        hold(ref);
    pid_t witness = fork();
    if (!witness)
        count_on();
    FILE *console = fopen("/dev/hvc0", "r+");
    char line[64];
    for (;;) {
        if (!fgets(line, sizeof line, console)) {
            clearerr(console);
            usleep(10000);
            continue;
        }
        if (line[0] == 't') {
            kill(holder, SIGUSR1);
            usleep(300000);
        }
        char first[32] = "h", second[32] = "w";
        const char *h = fate(holder, first), *w = fate(witness, second);
        fprintf(console, "HOLD value=%lx touched=%lx error=%d holder=%s witness=%s count=%lu bugs=%d.\n",
                shared->value, shared->touched, shared->error, h, w, shared->count, bugs());
        fflush(console);
    }
}

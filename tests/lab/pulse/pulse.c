/* pulse: a guest that notices when its memory and its disks are not of one instant.
 *
 * It is /init of its own initramfs. Step n: put n into memory, require every disk to hold n-1, write
 * n to every disk (unbuffered, flushed), go on to n+1. A guest whose memory and disks were saved at
 * one instant never sees anything but n-1; any other guest stops for good in the state "torn". One
 * page of a 16 MiB arena, whose content follows from n by arithmetic, is checked in every step
 * ("rambad"). It answers lines on its console even while a disk hangs; see README.md.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <dirent.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum {
    SECTOR = 512,
    SLOTS = 2047, /* sector 0 and the slots fill the first MiB */
    MAX_DISKS = 16,
    PAGE = 4096,
    ARENA_PAGES = 4096,
    WORDS = PAGE / 8,
};
static const uint64_t MAGIC = 0x3130455349505553ull;

struct sector {
    uint64_t magic, disk, n, sum;
    uint64_t filler[SECTOR / 8 - 4]; /* n over and over: a sector torn in itself shows */
};

struct disk {
    char name[32];
    int fd;
    uint64_t slots;
    _Atomic uint64_t written; /* newest n that the disk has acknowledged */
};

static struct disk disks[MAX_DISKS];
static int disk_count;
static uint64_t *counter; /* a page of its own, as in a program that keeps its data apart */
static uint64_t (*arena)[WORDS];
static uint64_t first; /* the arena has seen the numbers from first on */
static uint64_t boot_id;
static _Atomic uint64_t pace_us = 2000;
static _Atomic uint64_t dirty_mib;

static pthread_mutex_t step_lock = PTHREAD_MUTEX_INITIALIZER;  /* held during a step */
static pthread_mutex_t state_lock = PTHREAD_MUTEX_INITIALIZER; /* guards state */
static char state[200] = "ok";
static atomic_bool stopped;
static atomic_bool frozen; /* by the guest agent: the loop waits */

/* -- state ---------------------------------------------------------------------------------- */

static void stop(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    pthread_mutex_lock(&state_lock);
    if (!stopped || strncmp(format, "damaged", 7) == 0) /* the first cause stays */
        vsnprintf(state, sizeof state, format, arguments);
    stopped = true;
    pthread_mutex_unlock(&state_lock);
    va_end(arguments);
}

static uint64_t mix(uint64_t x) /* splitmix64 */
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* -- memory --------------------------------------------------------------------------------- */

/* What a word of the arena holds before any number was put there; never a number. */
static uint64_t blank_word(uint64_t page, uint64_t word)
{
    return mix(boot_id + page * WORDS + word) | 1ull << 63;
}

/* Number n lies in page n % ARENA_PAGES, word n / ARENA_PAGES % WORDS. */
static uint64_t expected_word(uint64_t page, uint64_t word, uint64_t n)
{
    uint64_t span = (uint64_t)ARENA_PAGES * WORDS, place = word * ARENA_PAGES + page;
    if (n < place)
        return blank_word(page, word);
    uint64_t newest = n - (n - place) % span;
    return newest >= first && newest ? newest : blank_word(page, word);
}

static void fill_arena(void)
{
    for (uint64_t page = 0; page < ARENA_PAGES; page++)
        for (uint64_t word = 0; word < WORDS; word++)
            arena[page][word] = blank_word(page, word);
}

static void check_page(uint64_t page, uint64_t n)
{
    for (uint64_t word = 0; word < WORDS; word++) {
        uint64_t wanted = expected_word(page, word, n), found = arena[page][word];
        if (found != wanted) {
            stop("rambad page=%lu word=%lu expected=%lx found=%lx at=%lu", page, word, wanted, found, n);
            return;
        }
    }
}

static void *dirty_forever(void *unused)
{
    char *area = NULL;
    uint64_t mib = 0, round = 0;
    (void)unused;
    for (;;) {
        uint64_t wanted = dirty_mib;
        if (wanted != mib) {
            if (area)
                munmap(area, mib << 20);
            area = NULL;
            mib = wanted;
            if (mib)
                area = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (area == MAP_FAILED) {
                area = NULL;
                dirty_mib = mib = 0;
            }
        }
        if (!area) {
            usleep(20000);
            continue;
        }
        round++;
        for (uint64_t at = 0; at < mib << 20; at += PAGE)
            *(volatile uint64_t *)(area + at) = mix(round + at);
    }
    return NULL;
}

/* -- disks ---------------------------------------------------------------------------------- */

static uint64_t sum_of(uint64_t disk, uint64_t n)
{
    return mix(mix(MAGIC ^ disk) ^ n);
}

/* Returns the number in a sector; -1 when it is not one of ours for this disk. */
static int64_t number_in(const struct sector *sector, uint64_t disk)
{
    if (sector->magic != MAGIC || sector->disk != disk || sector->sum != sum_of(disk, sector->n))
        return -1;
    for (size_t i = 0; i < sizeof sector->filler / 8; i++)
        if (sector->filler[i] != sector->n)
            return -1;
    return (int64_t)sector->n;
}

/* Reads neighbouring sectors into numbers; -2 stands for one that cannot be read. */
static void read_numbers(int disk, uint64_t sector, int count, int64_t *numbers)
{
    static struct sector buffer[4] __attribute__((aligned(PAGE)));
    ssize_t size = count * SECTOR, got = pread(disks[disk].fd, buffer, size, (off_t)(sector * SECTOR));
    for (int i = 0; i < count; i++)
        numbers[i] = got == size ? number_in(&buffer[i], (uint64_t)disk) : -2;
}

static int write_number(int disk, uint64_t n)
{
    static struct sector buffer __attribute__((aligned(PAGE)));
    struct disk *d = &disks[disk];
    buffer = (struct sector){.magic = MAGIC, .disk = (uint64_t)disk, .n = n};
    buffer.sum = sum_of((uint64_t)disk, n);
    for (size_t i = 0; i < sizeof buffer.filler / 8; i++)
        buffer.filler[i] = n;
    off_t slot = (off_t)((1 + n % d->slots) * SECTOR);
    if (pwrite(d->fd, &buffer, SECTOR, slot) != SECTOR || pwrite(d->fd, &buffer, SECTOR, 0) != SECTOR ||
        fsync(d->fd) != 0) {
        stop("torn disk=%d write of %lu failed: %s", disk, n, strerror(errno));
        return 0;
    }
    d->written = n;
    return 1;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct disk *)a)->name, ((const struct disk *)b)->name);
}

static int find_disks(void)
{
    int count = 0;
    struct dirent *entry;
    DIR *folder = opendir("/sys/block");
    while (folder && (entry = readdir(folder)) && count < MAX_DISKS) {
        const char *name = entry->d_name;
        if (strncmp(name, "vd", 2) && strncmp(name, "sd", 2) && strncmp(name, "xvd", 3))
            continue;
        snprintf(disks[count++].name, sizeof disks->name, "%.31s", name);
    }
    if (folder)
        closedir(folder);
    qsort(disks, (size_t)count, sizeof *disks, by_name);
    return count;
}

static void open_disks(int wanted)
{
    for (int tries = 0; (disk_count = find_disks()) < wanted && tries < 600; tries++)
        usleep(50000);
    if (disk_count != wanted)
        stop("torn found %d disks instead of %d", disk_count, wanted);
    for (int i = 0; i < disk_count; i++) {
        char path[64];
        uint64_t bytes = 0;
        snprintf(path, sizeof path, "/dev/%.31s", disks[i].name);
        for (int tries = 0; tries < 100; tries++) { /* devtmpfs may be a moment behind sysfs */
            disks[i].fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
            if (disks[i].fd >= 0)
                break;
            usleep(20000);
        }
        if (disks[i].fd < 0 || ioctl(disks[i].fd, BLKGETSIZE64, &bytes) || bytes < 2 * SECTOR) {
            stop("torn disk=%d cannot be opened: %s", i, strerror(errno));
            return;
        }
        disks[i].slots = bytes / SECTOR - 1 < SLOTS ? bytes / SECTOR - 1 : SLOTS;
    }
}

/* -- the loop ------------------------------------------------------------------------------- */

static void torn(int disk, const char *where, const char *wanted, uint64_t n, int64_t found)
{
    stop("torn disk=%d %s expected %s%lu found=%ld", disk, where, wanted, n, found);
}

/* What a disk must hold before n is written to it.
 *
 * n-1 in sector 0 and in its slot. n-2 in its slot: a disk older than memory that came while the
 * guest stood between these reads and the write of n-1 has got n-1 since, and shows only there.
 * Nothing newer than n-1 in the slot of n: that is a disk newer than memory. Only in the first step
 * after a start may n be there: the slot is written before sector 0, and a crash comes between. */
static void require(int disk, uint64_t n)
{
    int64_t head, slot[3]; /* of n-2, n-1, n */
    uint64_t slots = disks[disk].slots;
    read_numbers(disk, 0, 1, &head);
    if (n >= 2 && n % slots >= 2) {
        read_numbers(disk, 1 + (n - 2) % slots, 3, slot);
    } else {
        for (uint64_t i = 0; i < 3; i++)
            read_numbers(disk, 1 + (n + slots - 2 + i) % slots, 1, &slot[i]);
    }
    if (head != (int64_t)(n - 1))
        torn(disk, "sector 0", "", n - 1, head);
    else if (slot[1] != (int64_t)(n - 1))
        torn(disk, "newest slot", "", n - 1, slot[1]);
    else if (n > first && slot[0] != (int64_t)(n - 2))
        torn(disk, "slot before", "", n - 2, slot[0]);
    else if (slot[2] > (int64_t)n || (slot[2] == (int64_t)n && n != first) || slot[2] == -2)
        torn(disk, "next slot", "older than ", n, slot[2]);
}

static void step(void)
{
    uint64_t n = ++*(volatile uint64_t *)counter;
    arena[n % ARENA_PAGES][n / ARENA_PAGES % WORDS] = n;
    for (int i = 0; i < disk_count && !stopped; i++)
        require(i, n);
    for (int i = 0; i < disk_count && !stopped; i++)
        write_number(i, n);
    if (!stopped)
        check_page(mix(n) % ARENA_PAGES, n);
}

/* Goes on from the newest number on any disk, so that disks rolled back alone can boot too. */
static void begin(void)
{
    int64_t newest = 0;
    for (int i = 0; i < disk_count; i++) {
        int64_t found;
        read_numbers(i, 0, 1, &found);
        newest = found > newest ? found : newest;
    }
    *counter = (uint64_t)newest;
    first = *counter + 1;
    for (int i = 0; i < disk_count; i++)
        write_number(i, *counter);
}

static void damage(void)
{
    static char junk[1 << 20] __attribute__((aligned(PAGE)));
    pthread_mutex_lock(&step_lock);
    stop("damaged");
    for (size_t i = 0; i < sizeof junk / 8; i++)
        ((uint64_t *)junk)[i] = mix(~i);
    for (int i = 0; i < disk_count; i++) {
        size_t size = (disks[i].slots + 1) * SECTOR;
        if (pwrite(disks[i].fd, junk, size, 0) < 0 || fsync(disks[i].fd))
            stop("damaged but disk %d: %s", i, strerror(errno));
    }
    for (uint64_t page = 0; page < ARENA_PAGES; page++)
        memcpy(arena[page], junk + page % 256 * PAGE, PAGE);
    *counter = mix(*counter);
    pthread_mutex_unlock(&step_lock);
}

/* -- what the guest agent does ----------------------------------------------------------------- */

static int freeze(void)
{
    pthread_mutex_lock(&step_lock); /* no step is half done */
    frozen = true;
    pthread_mutex_unlock(&step_lock);
    return disk_count;
}

static int thaw(void)
{
    int count = frozen ? disk_count : 0;
    frozen = false;
    return count;
}

static int is_frozen(void)
{
    return frozen;
}

static struct agent_hooks agent_hooks = {.freeze = freeze, .thaw = thaw, .is_frozen = is_frozen};

/* -- console -------------------------------------------------------------------------------- */

static int console_fd = 2;

static void status_text(char *text, size_t size)
{
    int used = snprintf(text, size, "PULSE n=%lu disks=", *(volatile uint64_t *)counter);
    for (int i = 0; i < disk_count; i++)
        used += snprintf(text + used, size - (size_t)used, "%s%lu", i ? "," : "", disks[i].written);
    pthread_mutex_lock(&state_lock);
    snprintf(text + used, size - (size_t)used, " state=%s", state);
    pthread_mutex_unlock(&state_lock);
}

static void answer(char *command, char *text, size_t size)
{
    uint64_t value = 0;
    if (strcmp(command, "?") == 0) {
        status_text(text, size);
    } else if (strcmp(command, "damage") == 0) {
        damage();
        status_text(text, size);
    } else if (sscanf(command, "dirty %lu", &value) == 1) {
        struct sysinfo info;
        sysinfo(&info);
        uint64_t most = (info.freeram * info.mem_unit >> 20) * 3 / 4 + dirty_mib;
        dirty_mib = value < most ? value : most;
        snprintf(text, size, "OK dirty %lu", dirty_mib);
    } else if (sscanf(command, "pace %lu", &value) == 1) {
        pace_us = value * 1000;
        snprintf(text, size, "OK pace %lu", value);
    } else if (strcmp(command, "who") == 0) {
        snprintf(text, size, "PULSE boot=%016lx first=%lu cpus=%ld dirty=%lu pace=%lu frozen=%d time=%ld", boot_id,
                 first, sysconf(_SC_NPROCESSORS_ONLN), dirty_mib, pace_us / 1000, frozen, time(NULL));
    } else if (strcmp(command, "off") == 0) {
        sync();
        reboot(RB_POWER_OFF);
    } else {
        snprintf(text, size, "ERROR unknown command");
    }
}

/* A line is "command" or "@token command"; the answer repeats the token and ends in a sum over the
 * text, so that the asker tells its own answer, and a whole one, from leftovers on a console. */
static void take_line(char *line)
{
    char text[512] = "", out[640];
    char *command = line, *token = NULL;
    if (*line == '@') {
        token = line;
        command = strchr(line, ' ');
        if (!command)
            return;
        *command++ = 0;
    }
    if (!*command)
        return;
    answer(command, text, sizeof text);
    int size;
    if (token) {
        unsigned sum = 0;
        for (char *c = text; *c; c++)
            sum = (sum * 31 + (unsigned char)*c) & 0xffff;
        size = snprintf(out, sizeof out, "\n%s %s *%04x\n", token, text, sum);
    } else {
        size = snprintf(out, sizeof out, "%s\n", text);
    }
    for (int done = 0; done < size;) {
        ssize_t wrote = write(console_fd, out + done, (size_t)(size - done));
        if (wrote <= 0)
            return;
        done += (int)wrote;
    }
}

static void *serve_console(void *unused)
{
    char line[128];
    size_t used = 0;
    (void)unused;
    for (;;) {
        char c;
        if (read(console_fd, &c, 1) != 1) {
            usleep(100000);
            continue;
        }
        if (c == '\n' || c == '\r') {
            line[used] = 0;
            take_line(line);
            used = 0;
        } else if (used < sizeof line - 1) {
            line[used++] = c;
        }
    }
    return NULL;
}

static void open_console(void)
{
    struct termios settings;
    int fd = open("/dev/console", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd >= 0)
        console_fd = fd;
    if (tcgetattr(console_fd, &settings) == 0) {
        cfmakeraw(&settings);
        settings.c_oflag |= OPOST | ONLCR;
        tcsetattr(console_fd, TCSANOW, &settings);
    }
}

/* -- start ---------------------------------------------------------------------------------- */

static int plain_file(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static void load_modules(void)
{
    struct dirent **names;
    int count = scandir("/modules", &names, plain_file, alphasort);
    for (int i = 0; i < count; i++) {
        char path[320];
        snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        /* Those of the other hypervisor refuse to load; that is as it should be. */
        syscall(SYS_finit_module, fd, "", 0);
        close(fd);
    }
}

static int number_on_command_line(const char *key, int otherwise)
{
    char text[2048] = "";
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    const char *at = size > 0 ? strstr(text, key) : NULL;
    return at ? atoi(at + strlen(key)) : otherwise;
}

static void *pages(size_t size)
{
    return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
}

int main(void)
{
    pthread_t thread;
    struct timespec now;
    if (getpid() != 1) { /* the kernel runs us as /sbin/poweroff when the host asks for an end */
        sync();
        reboot(RB_POWER_OFF);
    }
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sys", "/sys", "sysfs", 0, NULL);
    open_console();
    counter = pages(PAGE);
    arena = pages((size_t)ARENA_PAGES * PAGE);
    syscall(SYS_getrandom, &boot_id, sizeof boot_id, 1 /* GRND_NONBLOCK */);
    clock_gettime(CLOCK_REALTIME, &now);
    boot_id = mix(boot_id ^ (uint64_t)now.tv_sec << 30 ^ (uint64_t)now.tv_nsec);
    fill_arena();
    load_modules();
    open_disks(number_on_command_line("pulse.disks=", 0));
    pace_us = (uint64_t)number_on_command_line("pulse.pace=", 2) * 1000;
    if (!stopped)
        begin();
    pthread_create(&thread, NULL, serve_console, NULL);
    pthread_create(&thread, NULL, dirty_forever, NULL);
    pthread_create(&thread, NULL, serve_agent, &agent_hooks);
    take_line((char[]){"?"}); /* says on the console that it runs */
    for (;;) {
        pthread_mutex_lock(&step_lock);
        if (!stopped && !frozen)
            step();
        pthread_mutex_unlock(&step_lock);
        usleep((useconds_t)(pace_us > 100 ? pace_us : 100)); /* lets "damage" have its turn */
    }
}

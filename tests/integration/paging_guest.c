/* A guest that sets up page tables of one mode, with mappings drawn from a seed, and halts.
 *
 * Built for MODE 2 (32-bit with 4 MiB pages), 3 (PAE), 4 (long mode), 5 (long mode with LA57) as a
 * Multiboot kernel, freestanding: QEMU loads it with -kernel. It turns paging on and halts; in long
 * mode it does so in compatibility mode, which translates by the same tables.
 */
typedef unsigned int u32;
typedef unsigned long long u64;

enum { PRESENT = 1, WRITABLE = 2, USER = 4, LARGE = 128, MAPPINGS = 400 };
enum { RAM_FRAMES = 64 << 8, TABLES = 4 << 20 };

#if MODE == 2
typedef u32 entry;
enum { INDEX_BITS = 10, LEVELS = 2, ADDRESS_BITS = 32 };
#else
typedef u64 entry;
enum { INDEX_BITS = 9, LEVELS = MODE, ADDRESS_BITS = MODE == 3 ? 32 : MODE == 4 ? 48 : 57 };
#endif

__asm__(".text\n.align 4\n.long 0x1BADB002, 0, -0x1BADB002\n"
        ".globl _start\n_start: mov $0x1ff000, %esp\n call build\n0: hlt\n jmp 0b\n");

static u64 random_state = SEED;
static u32 next_table = TABLES;

static u32 random32(void)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (u32)(random_state >> 32);
}

static entry *new_table(void)
{
    entry *table = (entry *)next_table;
    for (int n = 0; n < 4096 / (int)sizeof(entry); n++) /* what is not present may hold anything */
        table[n] = random32() % 4 ? 0 : (entry)random32() & ~(entry)PRESENT;
    next_table += 4096;
    return table;
}

static int can_be_large(int level) /* 1 is the lowest */
{
    return MODE == 2 ? level == 2 : level == 2 || (MODE > 3 && level == 3);
}

static void map(entry *root, u64 va, int leaf_level, u64 frame, entry flags)
{
    entry *table = root;
    for (int level = LEVELS;; level--) {
        u32 shift = 12 + INDEX_BITS * (level - 1);
        u32 entries = MODE == 3 && level == 3 ? 4 : 1 << INDEX_BITS;
        entry *place = &table[(u32)(va >> shift) & (entries - 1)];
        if (level == leaf_level) {
            u64 size_frames = 1ull << INDEX_BITS * (level - 1);
            if (!(*place & PRESENT))
                *place = (entry)((frame & ~(size_frames - 1)) << 12) | flags | PRESENT |
                         (level > 1 ? LARGE : 0);
            return;
        }
        if (!(*place & PRESENT)) {
            entry rights = MODE == 3 && level == 3 ? 0 : WRITABLE | USER;
            *place = (entry)(u32)new_table() | rights | PRESENT;
        } else if (can_be_large(level) && *place & LARGE) {
            return;
        }
        table = (entry *)(u32)(*place & 0xfffff000);
    }
}

static u64 random_address(void)
{
    u64 va = (u64)random32() << 32 | random32();
    if (random32() % 2) /* near another: tables with more than one entry */
        va &= 0x3fffff | 1ull << (ADDRESS_BITS - 1);
    return va & ((ADDRESS_BITS < 64 ? 1ull << ADDRESS_BITS : 0) - 1);
}

static void turn_on(entry *root)
{
    u32 cr4 = MODE == 2 ? 1 << 4 : 1 << 5 | (MODE == 5 ? 1 << 12 : 0);
    u32 efer = MODE == 2 ? 0 : 1 << 11 | (MODE > 3 ? 1 << 8 : 0);
    __asm__ volatile("mov %0, %%cr4" ::"r"(cr4));
    if (efer)
        __asm__ volatile("wrmsr" ::"c"(0xC0000080), "a"(efer), "d"(0));
    __asm__ volatile("mov %0, %%cr3" ::"r"(root));
    __asm__ volatile("mov %%cr0, %%eax\n or $0x80000001, %%eax\n mov %%eax, %%cr0" ::: "eax");
}

__attribute__((used)) void build(void)
{
    entry *root = new_table();
    if (MODE == 3)
        for (int n = 0; n < 4; n++)
            root[n] = 0; /* loaded by the processor: reserved bits would be a fault */
    for (u32 frame = 256; frame < 512; frame++)
        map(root, (u64)frame << 12, 1, frame, WRITABLE); /* ourselves */
    for (int n = 0; n < MAPPINGS; n++) {
        int level = 1 + random32() % LEVELS;
        entry flags = random32() % 8 & (WRITABLE | USER);
        if (level > 1 && !can_be_large(level))
            level = 1;
#if MODE > 2
        if (random32() % 2)
            flags |= 1ull << 63;
#endif
        map(root, random_address(), level, random32() % RAM_FRAMES, flags);
    }
    turn_on(root);
}

/* A guest that counts in memory for ever, and knows what the rest of its memory has to hold.
 *
 * A Multiboot kernel, freestanding, without paging: what is behind ARENA holds words that follow from
 * their address, the number of each step goes to COUNTER and into one of 1024 pages at TRAIL, and
 * each step checks a page of the arena. The first one that is wrong ends the counting and its
 * address is at WRONG. Everything else is zero.
 */
typedef unsigned int u32;

enum { COUNTER = 8 << 20, WRONG = (8 << 20) + 4, TRAIL = 9 << 20, ARENA = 16 << 20 };
#ifndef ARENA_PAGES
#define ARENA_PAGES 4096u
#endif
enum { TRAIL_PAGES = 1024, PAGE_WORDS = 1024 };

__asm__(".text\n.align 4\n.long 0x1BADB002, 0, -0x1BADB002\n"
        ".globl _start\n_start: mov $0x1ff000, %esp\n call count\n0: hlt\n jmp 0b\n");

static u32 right(u32 address)
{
    return address * 2654435761u | 1;
}

void count(void)
{
    volatile u32 *counter = (volatile u32 *)COUNTER, *wrong = (volatile u32 *)WRONG;
    volatile u32 *arena = (volatile u32 *)ARENA, *trail = (volatile u32 *)TRAIL;
    for (u32 word = 0; word < ARENA_PAGES * PAGE_WORDS; word++)
        arena[word] = right((u32)&arena[word]);
    for (u32 n = 1;; n++) {
        u32 page = n % ARENA_PAGES * PAGE_WORDS;
        for (u32 word = page; word < page + PAGE_WORDS; word++)
            if (arena[word] != right((u32)&arena[word])) {
                *wrong = (u32)&arena[word];
                return;
            }
        if (n > TRAIL_PAGES && trail[n % TRAIL_PAGES * PAGE_WORDS] != n - TRAIL_PAGES) {
            *wrong = (u32)&trail[n % TRAIL_PAGES * PAGE_WORDS];
            return;
        }
        trail[n % TRAIL_PAGES * PAGE_WORDS] = n;
        *counter = n;
    }
}

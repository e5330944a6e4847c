/* A guest agent as small as a guest's: what snapvm asks of qemu-ga, on the same channel. */
#ifndef PULSE_AGENT_H
#define PULSE_AGENT_H

struct agent_hooks {
    int (*freeze)(void); /* nothing is written from its return on; the number of disks */
    int (*thaw)(void);
    int (*is_frozen)(void);
};

/* Serves for ever; the body of a thread. It waits for a channel that is not there. */
void *serve_agent(void *hooks);

#endif

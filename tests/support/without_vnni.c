/* Makes this processor one without AVX-512, VNNI and AMX for one process: preload it.
 *
 * CPUID is set to fault, and the handler answers with the bits of what came after AVX2 taken away. Needs a processor
 * and a kernel with CPUID faulting (`cpuid_fault` in /proc/cpuinfo). Linux clears the setting at exec; the preloaded
 * constructor sets it again.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { FEATURES = 7, REFUSED = 97 };

static const unsigned LATER_B = 1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31;
static const unsigned LATER_C = 1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14;
static const unsigned LATER_D = 1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25;

static long allow(int cpuid) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, cpuid); }

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *at = (const unsigned char *)registers[REG_RIP];
    if (info->si_code != SI_KERNEL || at[0] != 0x0f || at[1] != 0xa2) {
        signal(number, SIG_DFL); /* a fault of the program itself comes again, and ends it; one that was sent does not */
        if (info->si_code <= 0)
            raise(number);
        return;
    }
    unsigned leaf = (unsigned)registers[REG_RAX], subleaf = (unsigned)registers[REG_RCX], a, b, c, d;
    allow(1);
    __cpuid_count(leaf, subleaf, a, b, c, d);
    allow(0);
    if (leaf == FEATURES && subleaf == 0)
        b &= ~LATER_B, c &= ~LATER_C, d &= ~LATER_D;
    else if (leaf == FEATURES)
        a = b = c = d = 0; /* AVX-VNNI and its kin */
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

static int (*set_action)(int, const struct sigaction *, struct sigaction *);

/* Python's faulthandler would take the signal away, and end the process at its next CPUID. */
int sigaction(int number, const struct sigaction *wanted, struct sigaction *before) {
    return set_action(number, number == SIGSEGV ? 0 : wanted, before);
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART};
    *(void **)&set_action = dlsym(RTLD_NEXT, "sigaction");
    if (!set_action || set_action(SIGSEGV, &action, 0) || allow(0))
        _exit(REFUSED);
}

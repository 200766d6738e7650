//go:build linux && amd64

package kernel

import "fmt"

// callName is what a system call is called, also one that there is not here.
func callName(nr uint64) string {
	if c := lookupCall(nr); c != nil {
		return c.name
	}
	if name, ok := missingCalls[nr]; ok {
		return name
	}
	return fmt.Sprintf("syscall_%d", nr)
}

// missingCalls are the calls of x86-64 that Linux has and the table has not.
var missingCalls = map[uint64]string{
	29: "shmget", 30: "shmat", 31: "shmctl", 64: "semget", 65: "semop", 66: "semctl", 67: "shmdt", 68: "msgget",
	69: "msgsnd", 70: "msgrcv", 71: "msgctl", 78: "getdents", 101: "ptrace", 103: "syslog", 125: "capget",
	126: "capset", 134: "uselib", 136: "ustat", 139: "sysfs", 153: "vhangup", 154: "modify_ldt", 155: "pivot_root",
	156: "_sysctl", 159: "adjtimex", 163: "acct", 164: "settimeofday", 167: "swapon", 168: "swapoff", 169: "reboot",
	171: "setdomainname", 172: "iopl", 173: "ioperm", 174: "create_module", 175: "init_module", 176: "delete_module",
	177: "get_kernel_syms", 178: "query_module", 179: "quotactl", 180: "nfsservctl", 181: "getpmsg", 182: "putpmsg",
	183: "afs_syscall", 184: "tuxcall", 185: "security", 187: "readahead", 205: "set_thread_area", 206: "io_setup",
	207: "io_destroy", 208: "io_getevents", 209: "io_submit", 210: "io_cancel", 211: "get_thread_area",
	212: "lookup_dcookie", 214: "epoll_ctl_old", 215: "epoll_wait_old", 216: "remap_file_pages", 219: "restart_syscall",
	220: "semtimedop", 227: "clock_settime", 236: "vserver", 237: "mbind", 238: "set_mempolicy", 239: "get_mempolicy",
	240: "mq_open", 241: "mq_unlink", 242: "mq_timedsend", 243: "mq_timedreceive", 244: "mq_notify",
	245: "mq_getsetattr", 246: "kexec_load", 248: "add_key", 249: "request_key", 250: "keyctl", 251: "ioprio_set",
	252: "ioprio_get", 253: "inotify_init", 254: "inotify_add_watch", 255: "inotify_rm_watch", 256: "migrate_pages",
	275: "splice", 276: "tee", 277: "sync_file_range", 278: "vmsplice", 279: "move_pages", 282: "signalfd",
	289: "signalfd4", 294: "inotify_init1", 297: "rt_tgsigqueueinfo", 298: "perf_event_open", 300: "fanotify_init",
	301: "fanotify_mark", 303: "name_to_handle_at", 304: "open_by_handle_at", 305: "clock_adjtime", 306: "syncfs",
	308: "setns", 312: "kcmp", 313: "finit_module", 314: "sched_setattr", 315: "sched_getattr", 317: "seccomp",
	320: "kexec_file_load", 321: "bpf", 327: "preadv2", 328: "pwritev2", 329: "pkey_mprotect", 330: "pkey_alloc",
	331: "pkey_free", 333: "io_pgetevents", 334: "rseq", 424: "pidfd_send_signal", 425: "io_uring_setup",
	426: "io_uring_enter", 427: "io_uring_register", 428: "open_tree", 429: "move_mount", 430: "fsopen",
	431: "fsconfig", 432: "fsmount", 433: "fspick", 434: "pidfd_open", 435: "clone3", 437: "openat2",
	438: "pidfd_getfd", 440: "process_madvise", 442: "mount_setattr", 443: "quotactl_fd",
	444: "landlock_create_ruleset", 445: "landlock_add_rule", 446: "landlock_restrict_self", 447: "memfd_secret",
	448: "process_mrelease", 449: "futex_waitv", 450: "set_mempolicy_home_node", 451: "cachestat", 452: "fchmodat2",
	453: "map_shadow_stack", 454: "futex_wake", 455: "futex_wait", 456: "futex_requeue", 457: "statmount",
	458: "listmount", 459: "lsm_get_self_attr", 460: "lsm_set_self_attr", 461: "lsm_list_modules", 462: "mseal",
}

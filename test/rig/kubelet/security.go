package kubelet

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"
)

// defaultCapabilities are those of a container that says nothing, in containerd and Docker alike.
var defaultCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// allCapabilities are those of a privileged container (capabilities(7)).
var allCapabilities = append(slices.Clone(defaultCapabilities),
	"CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_BLOCK_SUSPEND", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
	"CAP_DAC_READ_SEARCH", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_LEASE", "CAP_LINUX_IMMUTABLE", "CAP_MAC_ADMIN",
	"CAP_MAC_OVERRIDE", "CAP_NET_ADMIN", "CAP_NET_BROADCAST", "CAP_PERFMON", "CAP_SYSLOG", "CAP_SYS_ADMIN",
	"CAP_SYS_BOOT", "CAP_SYS_MODULE", "CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM")

// maskedPaths and readonlyPaths hide the kernel's switches from containers that are not privileged; the lists are
// containerd's (oci/spec.go).
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/sys/devices/virtual/powercap", "/proc/scsi",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// securityOf merges the security context of a container with that of its pod; the container's wins.
func securityOf(pod *corev1.Pod, c *corev1.Container) corev1.SecurityContext {
	var merged corev1.SecurityContext
	if c.SecurityContext != nil {
		merged = *c.SecurityContext
	}
	if p := pod.Spec.SecurityContext; p != nil {
		merged.RunAsUser = either(merged.RunAsUser, p.RunAsUser)
		merged.RunAsGroup = either(merged.RunAsGroup, p.RunAsGroup)
		merged.RunAsNonRoot = either(merged.RunAsNonRoot, p.RunAsNonRoot)
		merged.SeccompProfile = either(merged.SeccompProfile, p.SeccompProfile)
	}
	return merged
}

func either[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// errRunAsRoot is what kubelet says of a container that must not, but would, run as root.
var errRunAsRoot = errors.New("container has runAsNonRoot and would run as root")

func userOf(pod *corev1.Pod, sc corev1.SecurityContext, image Image) (specs.User, error) {
	user := deref(sc.RunAsUser, image.User)
	if deref(sc.RunAsNonRoot, false) && user == 0 {
		return specs.User{}, errRunAsRoot
	}
	u := specs.User{UID: uint32(user), GID: uint32(deref(sc.RunAsGroup, 0))}
	if p := pod.Spec.SecurityContext; p != nil {
		for _, g := range p.SupplementalGroups {
			u.AdditionalGids = append(u.AdditionalGids, uint32(g))
		}
		if p.FSGroup != nil {
			u.AdditionalGids = append(u.AdditionalGids, uint32(*p.FSGroup))
		}
	}
	return u, nil
}

// capabilitiesOf returns the set a container starts with. Another user than root loses all but the bounding set on
// execve, since none are ambient.
func capabilitiesOf(sc corev1.SecurityContext) *specs.LinuxCapabilities {
	set := slices.Clone(defaultCapabilities)
	switch {
	case deref(sc.Privileged, false):
		set = slices.Clone(allCapabilities)
	case sc.Capabilities != nil:
		set = adjust(set, sc.Capabilities)
	}
	slices.Sort(set)
	return &specs.LinuxCapabilities{Bounding: set, Effective: set, Permitted: set}
}

// adjust adds and drops capabilities; "ALL" stands for every one, and what is named by itself wins over ALL.
func adjust(set []string, change *corev1.Capabilities) []string {
	named := func(list []corev1.Capability) (names []string, all bool) {
		for _, c := range list {
			if strings.EqualFold(string(c), "ALL") {
				all = true
				continue
			}
			names = append(names, "CAP_"+strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_"))
		}
		return names, all
	}
	add, addAll := named(change.Add)
	drop, dropAll := named(change.Drop)
	if addAll {
		set = slices.Clone(allCapabilities)
	}
	if dropAll {
		set = nil
	}
	for _, c := range add {
		if !slices.Contains(set, c) {
			set = append(set, c)
		}
	}
	return slices.DeleteFunc(set, func(c string) bool { return slices.Contains(drop, c) && !slices.Contains(add, c) })
}

// seccompOf returns the filter: none without a profile, as kubelet does without seccompDefault, and the default of
// Docker and containerd for RuntimeDefault.
func seccompOf(sc corev1.SecurityContext, spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	if sc.SeccompProfile == nil || deref(sc.Privileged, false) {
		return nil, nil
	}
	switch sc.SeccompProfile.Type {
	case corev1.SeccompProfileTypeUnconfined:
		return nil, nil
	case corev1.SeccompProfileTypeRuntimeDefault:
		return seccomp.GetDefaultProfile(spec)
	}
	return nil, fmt.Errorf("seccomp profile of type %s: the rig's nodes have none", sc.SeccompProfile.Type)
}

package kubelet

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"
)

// containerInput is all that the OCI configuration of one container follows from.
type containerInput struct {
	pod       *corev1.Pod
	container *corev1.Container
	image     Image
	env       *environment
	volumes   map[string]string // volume name -> path on this machine
	sandbox   sandbox
	bundle    string
	// cgroup is the container's control group, under every hierarchy's root.
	cgroup string
}

// holdFlag tells the stand-in of compute where its guest's file is (see the package comment).
const holdFlag = "--hold=/var/run/kubevirt/sockets/" + GuestFile

// tellFlag tells it what to make when it is told to end.
const tellFlag = "--tell=/var/run/kubevirt/sockets/" + ShutdownFile

// ociSpec returns the configuration for runc.
func ociSpec(in containerInput) (*specs.Spec, error) {
	sc := securityOf(in.pod, in.container)
	user, err := userOf(in.pod, sc, in.image)
	if err != nil {
		return nil, err
	}
	mounts, err := mountsOf(in, deref(sc.Privileged, false))
	if err != nil {
		return nil, err
	}
	args := argsOf(in)
	if len(args) == 0 {
		return nil, errors.New("neither the image nor the pod names a command")
	}
	spec := &specs.Spec{
		Version: "1.0.2", // what runc 1.1 understands
		Process: &specs.Process{
			User: user, Args: args, Env: in.env.list(), Cwd: cwdOf(in),
			Capabilities:    capabilitiesOf(sc),
			NoNewPrivileges: sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation,
			OOMScoreAdj:     new(0),
		},
		Root:   &specs.Root{Path: "rootfs", Readonly: deref(sc.ReadOnlyRootFilesystem, false)},
		Mounts: mounts,
		Linux: &specs.Linux{
			Namespaces:  namespacesOf(in),
			CgroupsPath: in.cgroup,
			Resources:   resourcesOf(in.container.Resources),
		},
	}
	if deref(sc.Privileged, false) {
		spec.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	} else {
		spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	spec.Linux.Seccomp, err = seccompOf(sc, spec)
	return spec, err
}

// argsOf applies the rule of images: a command of the pod replaces entrypoint and arguments, arguments of the pod
// replace those of the image. A stand-in does not know the pod's commands.
func argsOf(in containerInput) []string {
	if in.image.StandIn {
		return standInArgs(in)
	}
	command := expandAll(in.container.Command, in.env.values)
	args := expandAll(in.container.Args, in.env.values)
	if len(command) == 0 {
		command = in.image.Entrypoint
		if len(args) == 0 {
			args = in.image.Cmd
		}
	}
	return slices.Concat(command, args)
}

func standInArgs(in containerInput) []string {
	args := slices.Clone(in.image.Entrypoint)
	switch {
	case isPlainInit(in.pod, in.container.Name):
		return append(args, "--once")
	case in.container.Name == "compute" && mountsVolume(in.container, "sockets"):
		return append(args, holdFlag, tellFlag)
	}
	if path, ok := containerDisk(in.container); ok {
		return append(args, "--hold="+path+".sock")
	}
	return args
}

// containerDisk returns the path of the disk that a container serves to virt-launcher. Its program ends when virt-handler
// removes the socket of that path (KubeVirt cmd/container-disk-v2alpha/main.c): only so is a pod completed that its
// guest has left.
func containerDisk(c *corev1.Container) (path string, ok bool) {
	i := slices.Index(c.Args, "--copy-path")
	if i < 0 || i+1 == len(c.Args) {
		return "", false
	}
	return c.Args[i+1], true
}

func mountsVolume(c *corev1.Container, volume string) bool {
	return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == volume })
}

func cwdOf(in containerInput) string {
	if in.container.WorkingDir == "" || in.image.StandIn {
		return "/"
	}
	return in.container.WorkingDir
}

func namespacesOf(in containerInput) []specs.LinuxNamespace {
	namespaces := []specs.LinuxNamespace{
		{Type: specs.MountNamespace},
		{Type: specs.NetworkNamespace, Path: in.sandbox.Network},
		{Type: specs.UTSNamespace, Path: in.sandbox.UTS},
		{Type: specs.IPCNamespace, Path: in.sandbox.IPC},
	}
	if !in.pod.Spec.HostPID {
		namespaces = append(namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	return namespaces
}

// resourcesOf translates requests and limits as kubelet does (pkg/kubelet/cm/helpers_linux.go): 1024 shares per CPU,
// at least 2, and a quota per period of 100 ms.
func resourcesOf(r corev1.ResourceRequirements) *specs.LinuxResources {
	const period = 100_000 // µs
	cpu := &specs.LinuxCPU{Shares: new(uint64(2))}
	if request, ok := r.Requests[corev1.ResourceCPU]; ok {
		cpu.Shares = new(uint64(max(2, request.MilliValue()*1024/1000)))
	}
	if limit, ok := r.Limits[corev1.ResourceCPU]; ok {
		cpu.Period, cpu.Quota = new(uint64(period)), new(max(1000, limit.MilliValue()*period/1000))
	}
	resources := &specs.LinuxResources{CPU: cpu, Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	if limit, ok := r.Limits[corev1.ResourceMemory]; ok {
		resources.Memory = &specs.LinuxMemory{Limit: new(limit.Value())}
	}
	return resources
}

func mountsOf(in containerInput, privileged bool) ([]specs.Mount, error) {
	mounts := kernelMounts(privileged)
	for _, path := range sortedKeys(in.image.Files) {
		mounts = append(mounts, bind(in.image.Files[path], path, true, nil))
	}
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		mounts = append(mounts, bind(filepath.Join(in.sandbox.Etc, name), "/etc/"+name, false, nil))
	}
	mounts = append(mounts, bind(filepath.Join(in.bundle, terminationLog), terminationPath(in.container), false, nil))
	own, err := volumeMounts(in)
	return append(mounts, own...), err
}

// kernelMounts are the pseudo file systems of every container (OCI runtime specification, default filesystems).
func kernelMounts(privileged bool) []specs.Mount {
	access := "ro"
	if privileged {
		access = "rw"
	}
	dev := []specs.Mount{
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
			Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	}
	if privileged {
		dev = []specs.Mount{{Destination: "/dev", Type: "bind", Source: "/dev", Options: []string{"rbind", "rslave"}}}
	}
	proc := specs.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}}
	sys := []specs.Mount{
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
	}
	return slices.Concat([]specs.Mount{proc}, dev, sys)
}

// volumeMounts are those of the Pod object, the outer ones before the inner ones.
func volumeMounts(in containerInput) ([]specs.Mount, error) {
	var mounts []specs.Mount
	for _, m := range in.container.VolumeMounts {
		source, ok := in.volumes[m.Name]
		if !ok {
			return nil, fmt.Errorf("mount %s: the pod has no volume %q", m.MountPath, m.Name)
		}
		if m.SubPathExpr != "" {
			m.SubPath = expand(m.SubPathExpr, in.env.values)
		}
		if m.SubPath != "" && !filepath.IsLocal(m.SubPath) {
			return nil, fmt.Errorf("mount %s: sub-path %q leaves the volume", m.MountPath, m.SubPath)
		}
		source, target := filepath.Join(source, m.SubPath), filepath.Clean("/"+m.MountPath)
		mounts = append(mounts, bind(source, target, m.ReadOnly, m.MountPropagation))
	}
	slices.SortStableFunc(mounts, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return mounts, nil
}

func bind(source, destination string, readonly bool, propagation *corev1.MountPropagationMode) specs.Mount {
	options := []string{"rbind", "rprivate", "rw"}
	if readonly {
		options[2] = "ro"
	}
	switch deref(propagation, corev1.MountPropagationNone) {
	case corev1.MountPropagationHostToContainer:
		options[1] = "rslave"
	case corev1.MountPropagationBidirectional:
		options[1] = "rshared"
	}
	return specs.Mount{Destination: destination, Type: "bind", Source: source, Options: options}
}

// terminationLog is the file in the bundle behind a container's terminationMessagePath.
const terminationLog = "termination-log"

func terminationPath(c *corev1.Container) string {
	if c.TerminationMessagePath == "" {
		return corev1.TerminationMessagePathDefault
	}
	return c.TerminationMessagePath
}

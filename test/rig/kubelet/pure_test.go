package kubelet

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestCapabilities(t *testing.T) {
	change := func(drop, add string) corev1.SecurityContext {
		c := &corev1.Capabilities{}
		for _, name := range strings.Fields(drop) {
			c.Drop = append(c.Drop, corev1.Capability(name))
		}
		for _, name := range strings.Fields(add) {
			c.Add = append(c.Add, corev1.Capability(name))
		}
		return corev1.SecurityContext{Capabilities: c}
	}
	for _, c := range []struct {
		name string
		sc   corev1.SecurityContext
		want []string
	}{
		{"nothing said", corev1.SecurityContext{}, defaultCapabilities},
		{"all dropped", change("ALL", ""), nil},
		{"all dropped, one added", change("ALL", "NET_ADMIN"), []string{"CAP_NET_ADMIN"}},
		{"a small letter and a prefix", change("all", "cap_sys_nice NET_RAW"), []string{"CAP_NET_RAW", "CAP_SYS_NICE"}},
		{"all but one dropped by name", change(strings.Join(defaultCapabilities[1:], " "), ""), defaultCapabilities[:1]},
	} {
		if diff := cmp.Diff(c.want, capabilitiesOf(c.sc).Effective); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
	if got := len(capabilitiesOf(corev1.SecurityContext{Privileged: new(true)}).Bounding); got != 41 {
		t.Errorf("a privileged container has %d capabilities, want all 41 of capabilities(7)", got)
	}
}

func TestUser(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{
		RunAsUser: new(int64(107)), RunAsNonRoot: new(true), FSGroup: new(int64(107)), SupplementalGroups: []int64{36},
	}}}
	root := &corev1.Container{SecurityContext: &corev1.SecurityContext{RunAsUser: new(int64(0)), RunAsNonRoot: new(false)}}
	wrong := &corev1.Container{SecurityContext: &corev1.SecurityContext{RunAsUser: new(int64(0))}}
	groups := []uint32{36, 107}
	for _, c := range []struct {
		name string
		c    *corev1.Container
		want specs.User
		err  error
	}{
		{"the pod's user", &corev1.Container{}, specs.User{UID: 107, AdditionalGids: groups}, nil},
		{"the container's user wins", root, specs.User{AdditionalGids: groups}, nil},
		{"root in spite of runAsNonRoot", wrong, specs.User{}, errRunAsRoot},
	} {
		got, err := userOf(pod, securityOf(pod, c.c), Image{})
		if !errors.Is(err, c.err) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestCommandLine(t *testing.T) {
	real := Image{Entrypoint: []string{"/floatip-agent"}, Cmd: []string{"--default"}}
	standIn := Images{}.find("quay.io/kubevirt/virt-launcher", "/usr/bin/pause")
	pod := samplePod(corev1.RestartPolicyNever)
	env := &environment{values: map[string]string{"NODE": "node-1"}}
	sockets := []corev1.VolumeMount{{Name: "sockets"}}
	for _, c := range []struct {
		name  string
		image Image
		c     corev1.Container
		want  string
	}{
		{"the image's", real, corev1.Container{}, "/floatip-agent --default"},
		{"arguments replace the image's", real, corev1.Container{Args: []string{"--node=$(NODE)"}},
			"/floatip-agent --node=node-1"},
		{"a command replaces both", real, corev1.Container{Command: []string{"/other"}}, "/other"},
		{"a stand-in ignores them", standIn, corev1.Container{Name: "disk", Command: []string{"/other"}}, "/pause"},
		{"a stand-in of an init container ends", standIn, corev1.Container{Name: "init"}, "/pause --once"},
		{"a stand-in of a sidecar does not", standIn, corev1.Container{Name: "console"}, "/pause"},
		{"compute heeds its guest", standIn, corev1.Container{Name: "compute", VolumeMounts: sockets},
			"/pause --hold=/var/run/kubevirt/sockets/guest --tell=/var/run/kubevirt/sockets/guest.shutdown"},
	} {
		args := argsOf(containerInput{pod: pod, container: &c.c, image: c.image, env: env})
		if got := strings.Join(args, " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestResources(t *testing.T) {
	list := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("250m"), corev1.ResourceMemory: resource.MustParse("32Mi"),
	}
	got := resourcesOf(corev1.ResourceRequirements{Requests: list, Limits: list})
	want := &specs.LinuxResources{
		CPU:     &specs.LinuxCPU{Shares: new(uint64(256)), Quota: new(int64(25_000)), Period: new(uint64(100_000))},
		Memory:  &specs.LinuxMemory{Limit: new(int64(32 << 20))},
		Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("resources of 250m and 32Mi (-want +got):\n%s", diff)
	}
}

// Outer mounts come before inner ones, whatever their order in the Pod object; a sub-path stays in its volume.
func TestVolumeMounts(t *testing.T) {
	fromHost := corev1.MountPropagationHostToContainer
	in := containerInput{volumes: map[string]string{"a": "/host/a", "b": "/host/b"}, container: &corev1.Container{}}
	in.container.VolumeMounts = []corev1.VolumeMount{
		{Name: "b", MountPath: "/var/run/inner", ReadOnly: true},
		{Name: "a", MountPath: "/var", SubPath: "sub", MountPropagation: &fromHost},
	}
	got, err := volumeMounts(in)
	want := []specs.Mount{
		{Destination: "/var", Type: "bind", Source: "/host/a/sub", Options: []string{"rbind", "rslave", "rw"}},
		{Destination: "/var/run/inner", Type: "bind", Source: "/host/b", Options: []string{"rbind", "rprivate", "ro"}},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("mounts: error %v (-want +got):\n%s", err, diff)
	}
	in.container.VolumeMounts = []corev1.VolumeMount{{Name: "a", MountPath: "/x", SubPath: "../b"}}
	if _, err := volumeMounts(in); err == nil {
		t.Error("a sub-path that leaves its volume was accepted")
	}
}

func TestExpand(t *testing.T) {
	values := map[string]string{"A": "1", "B": "$(A)"}
	for text, want := range map[string]string{
		"plain": "plain", "$(A)": "1", "x$(A)y$(A)": "x1y1", "$(B)": "$(A)", "$(MISSING)": "$(MISSING)",
		"$$(A)": "$(A)", "$A": "$A", "$(A": "$(A", "100$": "100$",
	} {
		if got := expand(text, values); got != want {
			t.Errorf("expand %q: %q, want %q", text, got, want)
		}
	}
}

func TestPodField(t *testing.T) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "launcher", Labels: map[string]string{"b": "2", "a": "1\n"},
			Annotations: map[string]string{"floatip.io/nat": "{}"},
		},
		Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "100.0.1.2"}, {IP: "fd00::2"}}},
	}
	for path, want := range map[string]string{
		"metadata.name": "launcher", "metadata.annotations['floatip.io/nat']": "{}", "metadata.annotations['none']": "",
		"metadata.labels": "a=\"1\\n\"\nb=\"2\"\n", "status.podIPs": "100.0.1.2,fd00::2",
	} {
		if got, err := podField(pod, path); err != nil || got != want {
			t.Errorf("field %s: %q, %v; want %q", path, got, err, want)
		}
	}
	if _, err := podField(pod, "spec.secrets"); err == nil {
		t.Error("an unknown field was accepted")
	}
}

// A reader never sees a mixture: one rename makes all new files current, and only wanted names are left.
func TestWriteAtomically(t *testing.T) {
	folder := t.TempDir()
	write := func(files map[string]file) {
		t.Helper()
		if err := writeAtomically(folder, files); err != nil {
			t.Fatal(err)
		}
	}
	link := func() string {
		t.Helper()
		target, err := os.Readlink(filepath.Join(folder, dataLink))
		if err != nil {
			t.Fatal(err)
		}
		return target
	}
	write(map[string]file{"a": {data: []byte("1"), mode: 0o644}, "sub/b": {data: []byte("2"), mode: 0o400}})
	first := link()
	write(map[string]file{"a": {data: []byte("1"), mode: 0o644}, "sub/b": {data: []byte("2"), mode: 0o400}})
	if link() != first {
		t.Error("equal files were written again")
	}
	write(map[string]file{"a": {data: []byte("3"), mode: 0o644}})
	second := link()
	if _, err := os.Stat(filepath.Join(folder, first)); second == first || !os.IsNotExist(err) {
		t.Errorf("generation %q after %q, the old one: %v; want a new one and the old one gone", second, first, err)
	}
	raw, err := os.ReadFile(filepath.Join(folder, "a"))
	if err != nil || string(raw) != "3" {
		t.Errorf("file a: %q, %v; want 3", raw, err)
	}
	var names []string
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff([]string{dataLink, second, "a"}, names); diff != "" {
		t.Errorf("names in the folder (-want +got):\n%s", diff)
	}
}

func TestHostPaths(t *testing.T) {
	for path, want := range map[string]string{
		"/var/lib/kubelet/pods": "/rig/node-1/kubelet/pods", "/var/lib/kubelet": "/rig/node-1/kubelet",
		"/var/lib/kubelets": "/rig/node-1/root/var/lib/kubelets", "/run/floatip": "/rig/node-1/root/run/floatip",
		"/lib/modules": "/lib/modules", "/dev/net/tun": "/dev/net/tun", "/var/lib/kubelet/../x": "/rig/node-1/root/var/lib/x",
	} {
		if got := NodePath("/rig/node-1", path); got != want {
			t.Errorf("host path %s: %s, want %s", path, got, want)
		}
	}
}

func TestParseMounts(t *testing.T) {
	const table = `22 27 0:21 / /proc rw - proc proc rw
40 27 0:4 uts:[4026532] /rig/n/kubelet/pods/u/uts rw - nsfs nsfs rw
41 27 0:4 ipc:[4026533] /rig/n/kubelet/pods/u/ipc rw - nsfs nsfs rw
42 27 0:4 / /rig/node rw - tmpfs tmpfs rw
`
	want := []string{"/rig/n/kubelet/pods/u/ipc", "/rig/n/kubelet/pods/u/uts"}
	if diff := cmp.Diff(want, parseMounts(table, "/rig/n")); diff != "" {
		t.Errorf("mounts below the folder (-want +got):\n%s", diff)
	}
}

// SIGTERM is sent once the program itself handles it: before, it would be lost.
func TestHandles(t *testing.T) {
	for name, tc := range map[string]struct {
		status string
		want   bool
	}{
		"runc, before it becomes the program": {"Name:\trunc:[2:INIT]\nSigCgt:\tfffffffdffc1feff\n", false},
		"the program has just begun":          {"Name:\tpause\nSigCgt:\t0000000000000000\n", false},
		"it handles other signals":            {"Name:\tpause\nSigCgt:\t0000000000000002\n", false},
		"it handles SIGTERM":                  {"Name:\tpause\nSigCgt:\t0000000000004000\n", true},
		"nonsense":                            {"Name:\tpause\n", false},
	} {
		if got := handles(tc.status, syscall.SIGTERM); got != tc.want {
			t.Errorf("%s: %t, want %t", name, got, tc.want)
		}
	}
}

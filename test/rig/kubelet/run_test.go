package kubelet

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"floatip.io/floatip/test/rig/cgroup"
)

// sidecar is a native sidecar with what the webhook gives to floatip's.
func sidecar(name string, args ...string) corev1.Container {
	quantities := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("32Mi"),
	}
	return corev1.Container{
		Name: name, Image: inspectImage, Args: args,
		RestartPolicy: new(corev1.ContainerRestartPolicyAlways),
		Resources:     corev1.ResourceRequirements{Requests: quantities, Limits: quantities},
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: new(int64(0)), RunAsNonRoot: new(false), ReadOnlyRootFilesystem: new(true),
			AllowPrivilegeEscalation: new(false),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_ADMIN"}},
			SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		VolumeMounts: []corev1.VolumeMount{{Name: "nat", MountPath: "/etc/floatip"}, {Name: "notes", MountPath: "/notes"}},
		StartupProbe: &corev1.Probe{
			PeriodSeconds: 1, TimeoutSeconds: 10, FailureThreshold: 30,
			ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"/inspect", "--exit=0"}}},
		},
	}
}

func launcherPod(containers ...corev1.Container) corev1.PodSpec {
	return corev1.PodSpec{
		SecurityContext: &corev1.PodSecurityContext{
			RunAsUser: new(int64(107)), RunAsGroup: new(int64(107)), RunAsNonRoot: new(true), FSGroup: new(int64(107)),
		},
		RestartPolicy: corev1.RestartPolicyNever,
		Volumes: []corev1.Volume{
			{Name: "notes", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			{Name: "nat", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
				Items: []corev1.DownwardAPIVolumeFile{{
					Path: "nat.json", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations['floatip.io/nat']"},
				}},
			}}},
		},
		Containers: containers,
	}
}

// A sidecar runs exactly as the Pod object says: in the pod's network, as root with NET_ADMIN alone on a read-only root
// inside a pod that is another user's, filtered by the runtime's default profile, with its memory limited.
func TestSidecarRunsAsThePodSays(t *testing.T) {
	n := startNode(t)
	spec := launcherPod(corev1.Container{Name: "compute", Image: "quay.io/kubevirt/virt-launcher:v1.8.4"})
	injected := sidecar("floatip-sidecar", "--read=/etc/floatip/nat.json,/etc/hosts", "--note=$(NOTE)")
	injected.Env = []corev1.EnvVar{
		{Name: "NOTE", Value: "/notes/order"},
		{Name: "POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
		{Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
	}
	spec.InitContainers = []corev1.Container{injected}
	pod := n.create("launcher", spec, map[string]string{"floatip.io/nat": "first"})
	got := n.inspect(pod, "floatip-sidecar")

	want := inspection{
		Args: []string{"/inspect", "--read=/etc/floatip/nat.json,/etc/hosts", "--note=/notes/order"},
		Env: map[string]string{
			"PATH": strings.TrimPrefix(defaultPath, "PATH="), "HOSTNAME": "launcher", "HOME": "/",
			"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443", "KUBERNETES_SERVICE_PORT_HTTPS": "443",
			"NOTE": "/notes/order", "POD": "launcher", "POD_IP": "100.0.1.2",
		},
		GID: 107, Groups: []int{107},
		Files: map[string]string{
			"/etc/floatip/nat.json": "first",
			"/etc/hosts": "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n" +
				"::1\tlocalhost ip6-localhost ip6-loopback\n100.0.1.2\tlauncher\n",
		},
		Hostname: "launcher", Interfaces: []string{"lo", "eth0"},
		RootError: "open /written: read-only file system", Unshare: "operation not permitted",
	}
	status := got.Status
	got.Status = nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the sidecar's surroundings (-want +got):\n%s", diff)
	}
	const netAdmin = "0000000000001000" // bit 12, linux/capability.h
	for key, value := range map[string]string{
		"CapBnd": netAdmin, "CapEff": netAdmin, "CapPrm": netAdmin, "CapInh": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2", // 2: filter, proc_pid_status(5)
	} {
		if status[key] != value {
			t.Errorf("%s of the sidecar: %s, want %s", key, status[key], value)
		}
	}
	limit := readCgroup(t, n, pod, "floatip-sidecar")
	if limit != "33554432" {
		t.Errorf("memory limit of the sidecar: %s bytes, want 32 MiB", limit)
	}
	n.until("the pod is ready", func() bool {
		return conditions(n.pod("launcher"))[corev1.PodReady] == corev1.ConditionTrue
	})
}

// readCgroup returns the memory limit of a container, by cgroup v1 or v2. The container's group is one of the node's.
func readCgroup(t *testing.T, n *node, pod *corev1.Pod, container string) string {
	t.Helper()
	name := filepath.Join(cgroup.Of(n.dir), containerID(pod, container))
	for _, path := range []string{
		"/sys/fs/cgroup/memory" + name + "/memory.limit_in_bytes",
		"/sys/fs/cgroup" + name + "/memory.max",
	} {
		if raw, err := os.ReadFile(path); err == nil {
			return strings.TrimSpace(string(raw))
		}
	}
	t.Fatalf("no memory control group %s", name)
	return ""
}

// A changed annotation reaches the running container's file, by the link that readers watch.
func TestDownwardAPIFollowsAnnotations(t *testing.T) {
	n := startNode(t)
	compute := corev1.Container{Name: "compute", Image: "quay.io/kubevirt/virt-launcher:v1.8.4"}
	pod := n.create("launcher", launcherPod(compute),
		map[string]string{"floatip.io/nat": "first"})
	volume := n.kubelet.paths.volume(pod.UID, "downward-api", "nat")
	holds := func(text string) func() bool {
		return func() bool {
			raw, err := os.ReadFile(filepath.Join(volume, "nat.json"))
			return err == nil && string(raw) == text
		}
	}
	n.until("the file holds the annotation", holds("first"))
	before, err := os.Readlink(filepath.Join(volume, dataLink))
	if err != nil {
		t.Fatal(err)
	}
	n.change("launcher", func(p *corev1.Pod) { p.Annotations["floatip.io/nat"] = "second" })
	n.until("the file holds the new annotation", holds("second"))
	if after, err := os.Readlink(filepath.Join(volume, dataLink)); err != nil || after == before {
		t.Errorf("%s leads to %q (%v) as before, want a new generation", dataLink, after, err)
	}
}

// A deleted pod's main containers end first, then its sidecars from the last to the first; then namespace, folder and
// object are gone.
func TestTerminationOrder(t *testing.T) {
	n := startNode(t)
	work := sidecar("work", "--note=/notes/order", "--name=work")
	work.RestartPolicy = nil
	work.StartupProbe = nil
	spec := launcherPod(work)
	spec.InitContainers = []corev1.Container{
		sidecar("first", "--note=/notes/order", "--name=first"),
		sidecar("second", "--note=/notes/order", "--name=second"),
	}
	// The notes outlive the pod.
	spec.Volumes[0].VolumeSource = corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/var/notes"}}
	pod := n.create("launcher", spec, nil)
	n.until("the pod runs", func() bool { return n.pod("launcher").Status.Phase == corev1.PodRunning })
	namespace, err := os.Readlink(filepath.Join(n.kubelet.paths.pod(pod.UID), netnsLink))
	if err != nil {
		t.Fatal(err)
	}
	n.inspect(pod, "work")

	n.delete("launcher", 30)
	n.until("the pod is gone", func() bool { return n.pod("launcher") == nil })
	n.until("the pod's folder is gone", func() bool {
		_, err := os.Stat(n.kubelet.paths.pod(pod.UID))
		return os.IsNotExist(err)
	})
	order, err := os.ReadFile(NodePath(n.dir, "/var/notes/order"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("work\nsecond\nfirst\n", string(order)); diff != "" {
		t.Errorf("order of SIGTERM (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(namespace); !os.IsNotExist(err) {
		t.Errorf("network namespace of the removed pod: %v, want it gone", err)
	}
}

// The end of the main containers ends a pod that is not restarted, its sidecars included.
func TestPodSucceeds(t *testing.T) {
	n := startNode(t)
	work := corev1.Container{Name: "work", Image: inspectImage, Args: []string{"--exit=0"}}
	spec := launcherPod(work)
	spec.InitContainers = []corev1.Container{
		{Name: "prepare", Image: "quay.io/kubevirt/virt-launcher:v1.8.4", Command: []string{"/usr/bin/cp"}},
		sidecar("floatip-sidecar"),
	}
	n.create("launcher", spec, nil)
	n.until("the pod has succeeded", func() bool { return n.pod("launcher").Status.Phase == corev1.PodSucceeded })
	for _, s := range n.pod("launcher").Status.InitContainerStatuses {
		if s.State.Terminated == nil || s.State.Terminated.ExitCode != 0 {
			t.Errorf("state of %s: %+v, want terminated with 0", s.Name, s.State)
		}
	}
}

// The network of a pod is given back also where its last container ends between a round's plan and the status that the round writes:
// the next one finds the pod finished, and its network there.
func TestNetworkOfAFinishedPod(t *testing.T) {
	n := startNode(t)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "ended", UID: "e4d3c2b1-0000-4000-8000-000000000001"},
		Spec: launcherPod()}
	w := newWorker(n.kubelet, pod)
	s, err := n.kubelet.makeSandbox(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	w.sandbox, w.published.Phase = &s, corev1.PodSucceeded
	if _, over := w.round(t.Context()); over {
		t.Error("the pod is gone although its object is there")
	}
	for _, path := range []string{filepath.Join(PodDir(n.dir, pod.UID), netnsLink), s.Network} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s: %v, want it gone", path, err)
		}
	}
}

// A container that fails is restarted, and says so.
func TestRestart(t *testing.T) {
	n := startNode(t)
	spec := launcherPod(corev1.Container{Name: "work", Image: inspectImage, Args: []string{"--exit=3"}})
	spec.RestartPolicy = corev1.RestartPolicyAlways
	n.create("failing", spec, nil)
	n.until("it has been restarted and backs off", func() bool {
		list := n.pod("failing").Status.ContainerStatuses
		if len(list) != 1 || list[0].RestartCount != 1 || list[0].State.Waiting == nil {
			return false
		}
		return list[0].State.Waiting.Reason == reasonBackOff
	})
	end := n.pod("failing").Status.ContainerStatuses[0].LastTerminationState.Terminated
	if end == nil || end.ExitCode != 3 || end.Message != "asked to" {
		t.Errorf("last state: %+v, want code 3 and what it wrote to its termination log", end)
	}
}

// What the API server holds arrives in files with the owner and mode that kubelet gives them.
func TestVolumes(t *testing.T) {
	named := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "default", Name: name} }
	ledger := &corev1.HostPathVolumeSource{Path: "/var/lib/ledger"}
	n := startNode(t,
		&corev1.ConfigMap{ObjectMeta: named("settings"), Data: map[string]string{"a": "1"}},
		&corev1.Secret{ObjectMeta: named("certificate"), Data: map[string][]byte{"tls.crt": []byte("pem")}},
		&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "ledger"}, Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: ledger},
		}},
		&corev1.PersistentVolumeClaim{
			ObjectMeta: named("ledger"), Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "ledger"},
			Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
		},
	)
	mode := int32(0o400)
	work := corev1.Container{
		Name: "work", Image: inspectImage,
		Args: []string{"--read=/config/a,/secret/tls.crt,/var/run/secrets/kubernetes.io/serviceaccount/token,/ledger/entries"},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "config", MountPath: "/config"},
			{Name: "secret", MountPath: "/secret", ReadOnly: true},
			{Name: "ledger", MountPath: "/ledger"},
			{Name: "token", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true},
		},
		SecurityContext: &corev1.SecurityContext{RunAsUser: new(int64(65532))},
	}
	if err := os.MkdirAll(NodePath(n.dir, "/var/lib/ledger"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(NodePath(n.dir, "/var/lib/ledger/entries"), []byte("held"), 0o644); err != nil {
		t.Fatal(err)
	}
	pod := n.create("webhook", corev1.PodSpec{
		ServiceAccountName: "webhook", RestartPolicy: corev1.RestartPolicyAlways, Containers: []corev1.Container{work},
		SecurityContext: &corev1.PodSecurityContext{FSGroup: new(int64(65532))},
		Volumes: []corev1.Volume{
			{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
				LocalObjectReference: corev1.LocalObjectReference{Name: "settings"},
			}}},
			{Name: "secret", VolumeSource: corev1.VolumeSource{
				Secret: &corev1.SecretVolumeSource{SecretName: "certificate", DefaultMode: &mode},
			}},
			{Name: "ledger", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "ledger"},
			}},
			{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{
					{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
				},
			}}},
		},
	}, nil)
	got := n.inspect(pod, "work")
	want := map[string]string{
		"/config/a": "1", "/secret/tls.crt": "pem", "/ledger/entries": "held",
		"/var/run/secrets/kubernetes.io/serviceaccount/token": "a-token",
	}
	if diff := cmp.Diff(want, got.Files); diff != "" {
		t.Errorf("files that user 65532 reads (-want +got):\n%s", diff)
	}
}

// The stand-in of a virt-launcher stays as long as its guest, also beyond SIGTERM, and ends with it.
func TestComputeEndsWithItsGuest(t *testing.T) {
	n := startNode(t)
	spec := launcherPod(corev1.Container{
		Name: "compute", Image: "quay.io/kubevirt/virt-launcher:v1.8.4",
		VolumeMounts: []corev1.VolumeMount{{Name: "sockets", MountPath: "/var/run/kubevirt/sockets"}},
	})
	spec.Volumes = append(spec.Volumes, corev1.Volume{
		Name: "sockets", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
	})
	pod := n.create("launcher", spec, nil)
	n.until("the pod runs", func() bool { return n.pod("launcher").Status.Phase == corev1.PodRunning })
	guest := filepath.Join(n.kubelet.paths.volume(pod.UID, "empty-dir", "sockets"), GuestFile)
	if err := os.WriteFile(guest, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	n.delete("launcher", 30)
	n.until("compute was told to end", func() bool {
		list, err := n.client.CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list.Items {
			if e.Reason == "Killing" {
				return true
			}
		}
		return false
	})
	if p := n.pod("launcher"); p == nil || p.Status.ContainerStatuses[0].State.Running == nil {
		t.Fatalf("compute while its guest runs: %+v, want it running", p)
	}
	if err := os.Remove(guest); err != nil {
		t.Fatal(err)
	}
	n.until("the pod is gone", func() bool { return n.pod("launcher") == nil })
}

package story

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/test/rig"
	"floatip.io/floatip/test/rig/lan"
	"floatip.io/floatip/test/rig/process"
)

// Story is a rig on which floatip gets installed and used.
type Story struct {
	Rig *rig.Rig
	// Client reads and writes as the cluster's administrator.
	Client   client.Client
	progress process.Progress
	root     string
}

// New begins a story on a running rig. Root is the folder of the repository, whose manifests get applied.
func New(r *rig.Rig, root string, progress process.Progress) (*Story, error) {
	log.SetLogger(logr.Discard()) // controller-runtime complains with a stack trace where nobody sets one
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, kubevirtv1.AddToScheme, v1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	c, err := client.New(r.Cluster.RESTConfig(), client.Options{Scheme: scheme})
	if err != nil {
		return nil, err
	}
	return &Story{Rig: r, Client: c, progress: progress, root: root}, nil
}

// Path is where a file or folder of the repository is.
func (s *Story) Path(elements ...string) string {
	return filepath.Join(s.root, filepath.Join(elements...))
}

// Manifest is the mission's vm.yaml.
func (s *Story) Manifest() (string, error) {
	raw, err := os.ReadFile(s.Path("test", "testdata", "vm.yaml"))
	return string(raw), err
}

// Kubectl runs kubectl as the administrator. Stdin may be empty.
func (s *Story) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	if stdin == "" {
		return s.Rig.Cluster.Kubectl(ctx, nil, args...)
	}
	return s.Rig.Cluster.Kubectl(ctx, strings.NewReader(stdin), args...)
}

// The objects of the manifests that Install waits for.
const (
	systemNamespace = "floatip-system"
	webhookName     = "floatip-webhook"
	agentName       = "floatip-agent"
)

// Install applies the manifests as an administrator would, and waits until the webhook and all agents are ready.
func (s *Story) Install(ctx context.Context) error {
	if _, err := s.Kubectl(ctx, "", "apply", "-k", s.Path("manifests")); err != nil {
		return err
	}
	return process.Wait(ctx, s.progress, "floatip's webhook and agents", s.installed)
}

// installed returns why floatip is not ready yet.
func (s *Story) installed(ctx context.Context) error {
	deployment, daemonset := new(appsv1.Deployment), new(appsv1.DaemonSet)
	if err := s.get(ctx, systemNamespace, webhookName, deployment); err != nil {
		return err
	}
	if err := s.get(ctx, systemNamespace, agentName, daemonset); err != nil {
		return err
	}
	if have := deployment.Status.ReadyReplicas; have < 1 {
		return fmt.Errorf("%s: no pod is ready", webhookName)
	}
	want, have := int32(len(s.Rig.LAN.Nodes)), daemonset.Status.NumberReady
	if have < want {
		return fmt.Errorf("%s: %d of %d pods are ready", agentName, have, want)
	}
	return nil
}

func (s *Story) get(ctx context.Context, namespace, name string, into client.Object) error {
	return s.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, into)
}

// AddNamespace makes a namespace, opted in or not.
func (s *Story) AddNamespace(ctx context.Context, name string, optedIn bool) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	if optedIn {
		namespace.Labels[floatip.LabelEnabled] = "true"
	}
	return s.Client.Create(ctx, namespace)
}

// Pool is the mission's pool on the rig's provider network.
const Pool = "provider"

// AddPool makes the pool provider, 192.168.100.50 to 192.168.100.99, and waits until it can be used.
func (s *Story) AddPool(ctx context.Context) error {
	raw, err := os.ReadFile(s.Path("manifests", "samples", "pool.yaml"))
	if err != nil {
		return err
	}
	if _, err := s.Kubectl(ctx, string(raw), "apply", "-f", "-"); err != nil {
		return err
	}
	return s.waitPool(ctx, Pool)
}

// Pool6 is one of IPv6 addresses on the same network, from which nobody gets one who does not ask for it. Floating6 is the
// first of them.
const Pool6 = "provider6"

var Floating6 = netip.MustParseAddr("2001:db8:100::50")

// AddPool6 makes the pool provider6, 2001:db8:100::50 to ::5f, and waits until it can be used.
func (s *Story) AddPool6(ctx context.Context) error {
	no := false
	pool := &v1alpha1.FloatingIPPool{ObjectMeta: metav1.ObjectMeta{Name: Pool6}, Spec: v1alpha1.FloatingIPPoolSpec{
		Addresses: []string{Floating6.String() + "-2001:db8:100::5f"}, Networks: []string{lan.Provider6.String()},
		Gateways: []string{"2001:db8:100::1"}, AutoAssign: &no,
	}}
	if err := s.Client.Create(ctx, pool); err != nil {
		return err
	}
	return s.waitPool(ctx, Pool6)
}

func (s *Story) waitPool(ctx context.Context, name string) error {
	return process.Wait(ctx, s.progress, "pool "+name, func(ctx context.Context) error {
		var pool v1alpha1.FloatingIPPool
		if err := s.get(ctx, "", name, &pool); err != nil {
			return err
		}
		for _, c := range pool.Status.Conditions {
			if c.Type == v1alpha1.ConditionReady && c.Status == metav1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("no condition %s: %v", v1alpha1.ConditionReady, pool.Status.Conditions)
	})
}

// VM reads a VirtualMachine.
func (s *Story) VM(ctx context.Context, namespace, name string) (*kubevirtv1.VirtualMachine, error) {
	vm := new(kubevirtv1.VirtualMachine)
	return vm, s.get(ctx, namespace, name, vm)
}

// FloatingIP reads the object of an address. It returns a NotFound error if nobody holds it.
func (s *Story) FloatingIP(ctx context.Context, address netip.Addr) (*v1alpha1.FloatingIP, error) {
	fip := new(v1alpha1.FloatingIP)
	return fip, s.get(ctx, "", v1alpha1.Name(address), fip)
}

// AddressOf returns the IPv4 address that a VM holds by its annotation.
func (s *Story) AddressOf(ctx context.Context, namespace, name string) (netip.Addr, error) {
	vm, err := s.VM(ctx, namespace, name)
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(vm.Annotations[floatip.AnnotationAddress])
}

// WaitBound waits until the FloatingIP of an address exists and names the VM, and returns it.
func (s *Story) WaitBound(ctx context.Context, address netip.Addr, vm *kubevirtv1.VirtualMachine) (fip *v1alpha1.FloatingIP, err error) {
	err = process.Wait(ctx, s.progress, "FloatingIP "+address.String(), func(ctx context.Context) error {
		if fip, err = s.FloatingIP(ctx, address); err != nil {
			return err
		}
		if fip.Spec.VM.UID != vm.UID {
			return fmt.Errorf("it is held by %s/%s, UID %s", fip.Spec.VM.Namespace, fip.Spec.VM.Name, fip.Spec.VM.UID)
		}
		if fip.Status.Phase != v1alpha1.PhaseBound && fip.Status.Phase != v1alpha1.PhaseReady {
			return fmt.Errorf("it is %q", fip.Status.Phase)
		}
		return nil
	})
	return fip, err
}

// WaitReady waits until the FloatingIP of an address is Ready and returns it.
func (s *Story) WaitReady(ctx context.Context, address netip.Addr) (fip *v1alpha1.FloatingIP, err error) {
	err = process.Wait(ctx, s.progress, "FloatingIP "+address.String()+" to be Ready", func(ctx context.Context) error {
		if fip, err = s.FloatingIP(ctx, address); err != nil {
			return err
		}
		if fip.Status.Phase != v1alpha1.PhaseReady {
			return fmt.Errorf("phase %s: %s", fip.Status.Phase, Unmet(fip.Status.Conditions))
		}
		return nil
	})
	return fip, err
}

// Unmet lists the conditions that are not true, with what they say.
func Unmet(conditions []metav1.Condition) string {
	var list []string
	for _, c := range conditions {
		if c.Status != metav1.ConditionTrue {
			list = append(list, fmt.Sprintf("%s: %s %s", c.Type, c.Reason, c.Message))
		}
	}
	if len(list) == 0 {
		return "no condition is set"
	}
	return strings.Join(list, "; ")
}

// WaitReleased waits until nobody holds an address.
func (s *Story) WaitReleased(ctx context.Context, address netip.Addr) error {
	return process.Wait(ctx, s.progress, "release of "+address.String(), func(ctx context.Context) error {
		fip, err := s.FloatingIP(ctx, address)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if fip.Status.Phase == v1alpha1.PhaseQuarantined {
			return nil
		}
		return fmt.Errorf("held by %s/%s, %s", fip.Spec.VM.Namespace, fip.Spec.VM.Name, fip.Status.Phase)
	})
}

// LauncherPod returns the running virt-launcher pod of a VM.
func (s *Story) LauncherPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	var pods corev1.PodList
	if err := s.Client.List(ctx, &pods, client.InNamespace(namespace),
		client.MatchingLabels{kubevirtv1.AppLabel: "virt-launcher"}); err != nil {
		return nil, err
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if owner := metav1.GetControllerOf(pod); owner != nil && owner.Name == name && pod.DeletionTimestamp == nil {
			return pod, nil
		}
	}
	return nil, fmt.Errorf("no virt-launcher pod of %s/%s among %d", namespace, name, len(pods.Items))
}

// Events returns the messages of the events on an object with a reason.
func (s *Story) Events(ctx context.Context, object client.Object, reason string) ([]string, error) {
	var list corev1.EventList
	if err := s.Client.List(ctx, &list, client.InNamespace(object.GetNamespace())); err != nil {
		return nil, err
	}
	var messages []string
	for _, e := range list.Items {
		if e.InvolvedObject.UID == object.GetUID() && e.Reason == reason {
			messages = append(messages, e.Message)
		}
	}
	return messages, nil
}

// WaitEvent waits for an event on an object with a reason and returns the messages.
func (s *Story) WaitEvent(ctx context.Context, object client.Object, reason string) (messages []string, err error) {
	err = process.Wait(ctx, s.progress, "event "+reason, func(ctx context.Context) error {
		if messages, err = s.Events(ctx, object, reason); err != nil {
			return err
		}
		if len(messages) == 0 {
			return errors.New("there is none")
		}
		return nil
	})
	return messages, err
}

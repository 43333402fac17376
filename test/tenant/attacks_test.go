package tenant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

// attack is one attempt of mallory's.
type attack struct {
	name string
	try  func(*court, *testing.T) error
	// refused is part of the refusal. If it is empty, the API server lets the attempt through, and it has no effect.
	refused string
}

const writtenByFloatip = "is written by floatip only"

var attacks = []attack{
	// What stands on a VM.
	{"address and claim of another tenant's VM on a new VM", (*court).copyVM, ""},
	{"the same where floatip is not asked", func(c *court, _ *testing.T) error {
		return c.as.Create(c.ctx, c.vm(quiet, "copied", c.victim.Annotations))
	}, writtenByFloatip},
	{"the same as an opted-out VM", (*court).copyOptedOut, ""},
	{"the address is requested", func(c *court, _ *testing.T) error {
		return c.as.Create(c.ctx, c.vm(mallory, "requests", map[string]string{floatip.AnnotationRequest: c.before.Victim[0]}))
	}, "is held by a VM of another namespace"},
	{"the pool of others is named", func(c *court, _ *testing.T) error {
		return c.as.Create(c.ctx, c.vm(mallory, "intrudes", map[string]string{floatip.AnnotationPool: vault}))
	}, "its namespaceSelector does not match mallory"},
	{"an address of the pool of others is requested", func(c *court, _ *testing.T) error {
		return c.as.Create(c.ctx, c.vm(mallory, "intrudes", map[string]string{floatip.AnnotationRequest: vaultAddress.String()}))
	}, "its namespaceSelector does not match mallory"},
	{"the address is written into a VM of his own", func(c *court, _ *testing.T) error {
		return c.annotate(c.mine, floatip.AnnotationAddress, c.before.Victim[0])
	}, ""}, // undone, with a warning
	{"the claim is written into a VM of his own", func(c *court, _ *testing.T) error {
		return c.annotate(c.mine, floatip.AnnotationClaim, c.before.Victim[1])
	}, ""},
	{"a request for the address is added to a VM of his own", func(c *court, _ *testing.T) error {
		return c.annotate(c.mine, floatip.AnnotationRequest, c.before.Victim[0])
	}, "an address does not change with an edit"},
	{"the UID of another tenant's VM is written into a new one of the same name", (*court).sameUID, ""},
	{"another tenant's VM is changed", func(c *court, _ *testing.T) error {
		return c.annotate(c.victim, floatip.AnnotationRequest, "")
	}, `cannot patch resource "virtualmachines"`},

	// What stands on an instance.
	{"the template names the address", (*court).template, ""},
	{"an instance belongs to another tenant's VM", (*court).borrowedOwner, ""},
	{"an instance with a description, where floatip is not asked", func(c *court, _ *testing.T) error {
		return c.as.Create(c.ctx, c.vmi(quiet, "described", map[string]string{floatip.AnnotationNAT: c.before.NAT}))
	}, writtenByFloatip},
	{"an instance with the address, where floatip is not asked", func(c *court, _ *testing.T) error {
		return c.as.Create(c.ctx, c.vmi(quiet, "addressed", map[string]string{floatip.AnnotationAddress: c.before.Victim[0]}))
	}, writtenByFloatip},
	{"the address is written into a running instance", func(c *court, _ *testing.T) error {
		return c.annotate(c.vmi(mallory, c.mine.Name, nil), floatip.AnnotationAddress, c.before.Victim[0])
	}, writtenByFloatip},
	{"a description is written into a running instance", func(c *court, _ *testing.T) error {
		return c.annotate(c.vmi(mallory, c.mine.Name, nil), floatip.AnnotationNAT, "{}")
	}, writtenByFloatip},

	// What stands on a pod.
	{"a pod with the running one's labels, owner and description", func(c *court, _ *testing.T) error {
		return c.as.Create(c.ctx, c.twin(map[string]string{floatip.AnnotationNAT: c.before.NAT}))
	}, writtenByFloatip},
	{"a pod with labels, owner, address and sidecar", (*court).lookAlike, ""},
	{"a description is bound to a pod", (*court).bindDescription, writtenByFloatip},
	{"the description of the running pod is changed", func(c *court, _ *testing.T) error {
		return c.annotate(c.pod, floatip.AnnotationNAT, forgedNAT(c))
	}, writtenByFloatip},
	{"the description of the running pod is removed", func(c *court, _ *testing.T) error {
		return c.patch(c.pod, `{"metadata":{"annotations":{"floatip.io/nat":null}}}`)
	}, writtenByFloatip},
	{"the description is changed by the pod's status", func(c *court, _ *testing.T) error {
		return c.as.Status().Patch(c.ctx, c.pod.DeepCopy(), mergePatch(annotation(floatip.AnnotationNAT, forgedNAT(c))))
	}, writtenByFloatip},
	{"the description is changed beside an ephemeral container", func(c *court, _ *testing.T) error {
		return c.as.SubResource("ephemeralcontainers").Patch(c.ctx, c.pod.DeepCopy(), client.RawPatch(types.StrategicMergePatchType,
			[]byte(`{"metadata":{"annotations":{"floatip.io/nat":"{}"}},"spec":{"ephemeralContainers":[{"name":"x","image":"example/x"}]}}`)))
	}, ""}, // the API server itself ignores metadata there
	{"the address on the running pod is changed", func(c *court, _ *testing.T) error {
		return c.annotate(c.pod, floatip.AnnotationAddress, c.before.Victim[0])
	}, ""}, // it shows, and nobody reads it

	// Objects that are floatip's own.
	{"a FloatingIP is made", func(c *court, _ *testing.T) error {
		return c.as.Create(c.ctx, &v1alpha1.FloatingIP{ObjectMeta: metav1.ObjectMeta{Name: "192.168.100.90"}, Spec: v1alpha1.FloatingIPSpec{
			Address: "192.168.100.90", Pool: story.Pool,
			VM: v1alpha1.VMReference{Namespace: mallory, Name: c.mine.Name, UID: c.mine.UID},
		}})
	}, `cannot create resource "floatingips"`},
	{"a FloatingIP gets another owner", func(c *court, _ *testing.T) error {
		ip := &v1alpha1.FloatingIP{ObjectMeta: metav1.ObjectMeta{Name: c.before.Victim[0]}}
		return c.as.Patch(c.ctx, ip, mergePatch(fmt.Sprintf(`{"spec":{"vm":{"namespace":%q,"name":%q,"uid":%q}}}`, mallory, c.mine.Name, c.mine.UID)))
	}, `cannot patch resource "floatingips"`},
	{"a FloatingIP is read", func(c *court, _ *testing.T) error {
		return c.as.Get(c.ctx, client.ObjectKey{Name: c.before.Victim[0]}, &v1alpha1.FloatingIP{})
	}, `cannot get resource "floatingips"`},
	{"a pool of his own", func(c *court, _ *testing.T) error {
		return c.as.Create(c.ctx, &v1alpha1.FloatingIPPool{
			ObjectMeta: metav1.ObjectMeta{Name: mallory}, Spec: v1alpha1.FloatingIPPoolSpec{Addresses: []string{"192.168.100.0/24"}},
		})
	}, `cannot create resource "floatingippools"`},

	// Names that are somebody else's.
	{"an account named as KubeVirt's", (*court).namesake, writtenByFloatip},
	{"KubeVirt's controller writes what his VirtualMachinePool says", (*court).byWayOfKubeVirt, ""},
}

func mergePatch(text string) client.Patch { return client.RawPatch(types.MergePatchType, []byte(text)) }

func annotation(key, value string) string {
	return fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, key, value)
}

func (c *court) patch(o client.Object, text string) error {
	return c.as.Patch(c.ctx, o.DeepCopyObject().(client.Object), mergePatch(text))
}

func (c *court) annotate(o client.Object, key, value string) error {
	return c.patch(o, annotation(key, value))
}

// forgedNAT is the running pod's description with alice's address in it.
func forgedNAT(c *court) string {
	return strings.ReplaceAll(c.before.NAT, c.before.Mine[0], c.before.Victim[0])
}

// copyVM creates a VM with alice's keys: it gets keys of its own.
func (c *court) copyVM(t *testing.T) error {
	vm := c.vm(mallory, "copied", c.victim.Annotations)
	if err := c.as.Create(c.ctx, vm); err != nil {
		return err
	}
	defer c.remove(t, vm)
	if vm.Annotations[floatip.AnnotationAddress] == c.before.Victim[0] || vm.Annotations[floatip.AnnotationClaim] == c.before.Victim[1] {
		return fmt.Errorf("it has %v", vm.Annotations)
	}
	_, err := c.WaitBound(c.ctx, addressOf(t, vm), vm)
	return err
}

// copyOptedOut creates a VM that wants no address and carries alice's: the keys are taken away.
func (c *court) copyOptedOut(t *testing.T) error {
	vm := c.vm(mallory, "opted-out", map[string]string{
		floatip.LabelEnabled: "false", floatip.AnnotationAddress: c.before.Victim[0], floatip.AnnotationClaim: c.before.Victim[1],
	})
	if err := c.as.Create(c.ctx, vm); err != nil {
		return err
	}
	defer c.remove(t, vm)
	if _, has := vm.Annotations[floatip.AnnotationAddress]; has {
		return fmt.Errorf("it has %v", vm.Annotations)
	}
	return nil
}

// sameUID creates a VM with the name and UID of alice's.
func (c *court) sameUID(t *testing.T) error {
	vm := c.vm(mallory, c.victim.Name, nil)
	vm.UID = c.victim.UID
	if err := c.as.Create(c.ctx, vm); err != nil {
		return err
	}
	defer c.remove(t, vm)
	if vm.UID == c.victim.UID || vm.Annotations[floatip.AnnotationAddress] == c.before.Victim[0] {
		return fmt.Errorf("it has UID %s and %v", vm.UID, vm.Annotations)
	}
	return nil
}

func (c *court) remove(t *testing.T, o client.Object) {
	if err := c.Client.Delete(context.WithoutCancel(c.ctx), o); client.IgnoreNotFound(err) != nil {
		t.Error(err)
	}
}

// vmi is an instance that no node will take.
func (c *court) vmi(namespace, name string, annotations map[string]string) *kubevirtv1.VirtualMachineInstance {
	vmi := &kubevirtv1.VirtualMachineInstance{}
	vmi.Namespace, vmi.Name, vmi.Annotations = namespace, name, annotations
	vmi.Spec = *c.vm(namespace, name, nil).Spec.Template.Spec.DeepCopy()
	vmi.Spec.NodeSelector = map[string]string{"example.com/none": "true"}
	return vmi
}

// template starts an opted-out VM whose template has the address and a description: its pod has neither.
func (c *court) template(t *testing.T) error {
	vm := c.vm(mallory, "template", map[string]string{floatip.LabelEnabled: "false"})
	always := kubevirtv1.RunStrategyAlways
	vm.Spec.Running, vm.Spec.RunStrategy = nil, &always
	vm.Spec.Template.ObjectMeta.Annotations = map[string]string{
		floatip.AnnotationAddress: c.before.Victim[0], floatip.AnnotationNAT: forgedNAT(c), floatip.AnnotationClaim: c.before.Victim[1],
	}
	vm.Spec.Template.Spec.NodeSelector = map[string]string{"example.com/none": "true"}
	if err := c.as.Create(c.ctx, vm); err != nil {
		return err
	}
	defer c.remove(t, vm)
	pod, err := c.launcher(vm.Name)
	if err != nil {
		return err
	}
	return plain(pod)
}

// launcher waits for the launcher pod of a VM of mallory's.
func (c *court) launcher(name string) (pod *corev1.Pod, err error) {
	err = process.Wait(c.ctx, nil, "the pod of "+name, func(ctx context.Context) error {
		pod, err = c.LauncherPod(ctx, mallory, name)
		return err
	})
	return pod, err
}

// plain returns an error that names what of floatip a pod has.
func plain(pod *corev1.Pod) error {
	for key := range pod.Annotations {
		if strings.HasPrefix(key, "floatip.io/") {
			return fmt.Errorf("the pod has %s: %s", key, pod.Annotations[key])
		}
	}
	for _, container := range pod.Spec.InitContainers {
		if container.Name == floatip.SidecarContainer {
			return errors.New("the pod has a sidecar")
		}
	}
	return nil
}

// borrowedOwner creates an instance that says that alice's VM controls it. Garbage collection will find out that there
// is no such VM in the namespace; until then nothing may come of it.
func (c *court) borrowedOwner(t *testing.T) error {
	vmi := c.vmi(mallory, c.victim.Name, map[string]string{floatip.AnnotationAddress: c.before.Victim[0]})
	vmi.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(c.victim, kubevirtv1.VirtualMachineGroupVersionKind)}
	if err := c.as.Create(c.ctx, vmi); err != nil {
		return err
	}
	defer c.remove(t, vmi)
	if _, has := vmi.Annotations[floatip.AnnotationAddress]; has {
		return fmt.Errorf("the instance has %v", vmi.Annotations)
	}
	if vmi.Spec.Domain.Chassis != nil {
		return fmt.Errorf("the instance has the hint %s", vmi.Spec.Domain.Chassis.Asset)
	}
	return nil
}

// twin looks like the running pod.
func (c *court) twin(annotations map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: mallory, Name: c.pod.Name + "-twin", Labels: c.pod.Labels, OwnerReferences: c.pod.OwnerReferences,
			Annotations: annotations,
		},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "compute", Image: "example/twin"}}, NodeName: c.pod.Spec.NodeName,
		},
	}
}

// lookAlike runs a pod that has all of the running one's but the description: it even brings the sidecar and its volumes.
// The node agent plugs nothing into it.
func (c *court) lookAlike(t *testing.T) error {
	pod := c.twin(map[string]string{floatip.AnnotationAddress: c.before.Victim[0]})
	for _, container := range c.pod.Spec.InitContainers {
		if container.Name == floatip.SidecarContainer {
			container.RestartPolicy = nil
			container.VolumeMounts = container.VolumeMounts[:2] // without the token that this pod does not have
			pod.Spec.Containers = []corev1.Container{container}
		}
	}
	for _, volume := range c.pod.Spec.Volumes {
		if volume.Name == floatip.SocketVolume || volume.Name == floatip.NATVolume {
			pod.Spec.Volumes = append(pod.Spec.Volumes, volume)
		}
	}
	pod.Spec.AutomountServiceAccountToken = new(false)
	if err := c.as.Create(c.ctx, pod); err != nil {
		return err
	}
	defer c.remove(t, pod)
	err := process.Wait(c.ctx, nil, "the look-alike to run", func(ctx context.Context) error {
		if err := c.Client.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if pod.Status.Phase != corev1.PodRunning {
			return fmt.Errorf("it is %s: %+v", pod.Status.Phase, pod.Status.ContainerStatuses)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if n, err := c.legs(c.pod); err != nil || n != 1 {
		return fmt.Errorf("the pod of the VM has %d legs, %v", n, err)
	}
	if n, err := c.legs(pod); err != nil || n != 0 {
		return fmt.Errorf("the look-alike has %d legs, %v", n, err)
	}
	return nil
}

// bindDescription binds a pod to a node, with a description among the annotations of the Binding, which the API server
// merges into the pod's.
func (c *court) bindDescription(t *testing.T) error {
	pod := c.twin(nil)
	pod.Name += "-bound"
	pod.Spec.NodeName, pod.Spec.SchedulerName = "", "nobody"
	if err := c.as.Create(c.ctx, pod); err != nil {
		return err
	}
	defer c.remove(t, pod)
	binding := &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: mallory, Name: pod.Name, Annotations: map[string]string{floatip.AnnotationNAT: c.before.NAT},
		},
		Target: corev1.ObjectReference{Kind: "Node", Name: c.pod.Spec.NodeName},
	}
	return c.as.SubResource("binding").Create(c.ctx, pod, binding)
}

// namesake creates the VM as a service account of mallory's that has the name of KubeVirt's.
func (c *court) namesake(t *testing.T) error {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: mallory, Name: "kubevirt-controller"}}
	if err := c.as.Create(c.ctx, account); err != nil {
		return err
	}
	set, err := kubernetes.NewForConfig(c.config)
	if err != nil {
		return err
	}
	token, err := set.CoreV1().ServiceAccounts(mallory).CreateToken(c.ctx, account.Name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	config := rest.AnonymousClientConfig(c.Rig.Cluster.RESTConfig())
	config.BearerToken, config.Dial = token.Status.Token, c.config.Dial
	as, err := client.New(config, client.Options{Scheme: c.Client.Scheme()})
	if err != nil {
		return err
	}
	return as.Create(c.ctx, c.vm(quiet, "copied", c.victim.Annotations))
}

// byWayOfKubeVirt has KubeVirt's controller make a VM with the vault's address, in a namespace where floatip is not
// asked; then the webhook starts anew, and compares the cluster with its ledger.
func (c *court) byWayOfKubeVirt(t *testing.T) error {
	template := c.vm(quiet, "", nil)
	pool := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "pool.kubevirt.io/v1beta1", "kind": "VirtualMachinePool",
		"metadata": map[string]any{"namespace": quiet, "name": "pool"},
		"spec": map[string]any{
			"replicas": int64(1),
			"selector": map[string]any{"matchLabels": map[string]any{"of": "pool"}},
			"virtualMachineTemplate": map[string]any{
				"metadata": map[string]any{
					"labels": map[string]any{"of": "pool"},
					"annotations": map[string]any{
						floatip.AnnotationAddress: vaultAddress.String(), floatip.AnnotationClaim: floatip.NewClaim().String(),
					},
				},
				"spec": template.Spec,
			},
		},
	}}
	raw, err := json.Marshal(pool.Object)
	if err == nil {
		err = json.Unmarshal(raw, &pool.Object)
	}
	if err == nil {
		err = c.as.Create(c.ctx, pool)
	}
	if err != nil {
		return err
	}
	var made *kubevirtv1.VirtualMachine
	err = process.Wait(c.ctx, nil, "the VM of the pool", func(ctx context.Context) error {
		made, err = c.VM(ctx, quiet, "pool-0")
		return err
	})
	if err != nil {
		return err
	}
	if made.Annotations[floatip.AnnotationAddress] != vaultAddress.String() {
		t.Errorf("KubeVirt's controller did not write the annotation, so this shows nothing: %v", made.Annotations)
	}
	if err := c.KillWebhook(c.ctx); err != nil {
		return err
	}
	if _, err := c.WaitEvent(c.ctx, made, "FloatingIPNotHeld"); err != nil {
		return err
	}
	if _, err := c.FloatingIP(c.ctx, vaultAddress); !apierrors.IsNotFound(err) {
		t.Errorf("FloatingIP %s: %v, want none", vaultAddress, err)
	}
	out, err := c.Ledger(c.ctx, "list")
	if strings.Contains(out, vaultAddress.String()) {
		t.Errorf("the ledger has it:\n%s", out)
	}
	return err
}

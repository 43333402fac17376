package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Timing of the node's lease as kubelet has it (pkg/kubelet/kubelet.go).
const (
	leaseDuration = 40 * time.Second
	leaseRenewal  = 10 * time.Second
)

// retryInterval is how soon a failed call to the API server is repeated.
const retryInterval = time.Second

// nodeCapacity is what a node says it has. Guests and pods share one machine, so these figures only have to let the
// scheduler place them.
var nodeCapacity = corev1.ResourceList{
	corev1.ResourceCPU:              resource.MustParse("16"),
	corev1.ResourceMemory:           resource.MustParse("32Gi"),
	corev1.ResourceEphemeralStorage: resource.MustParse("100Gi"),
	corev1.ResourcePods:             resource.MustParse("110"),
}

// KubeVirtDevices is what the device plugins of virt-handler tell of a node (KubeVirt pkg/virt-handler/device-manager).
// On the rig nothing opens them.
func KubeVirtDevices() corev1.ResourceList {
	devices := resource.MustParse("110")
	return corev1.ResourceList{
		"devices.kubevirt.io/kvm": devices, "devices.kubevirt.io/tun": devices, "devices.kubevirt.io/vhost-net": devices,
	}
}

// KubeVirtLabels are what virt-handler's node labeller writes (KubeVirt pkg/virt-handler/node-labeller), as far as
// virt-controller asks for them: a virt-launcher pod for schedulable, a migration target also for the machine type and
// the CPU model.
func KubeVirtLabels() map[string]string {
	return map[string]string{
		"kubevirt.io/schedulable":                        "true",
		"machine-type.node.kubevirt.io/q35":              "true",
		"machine-type.node.kubevirt.io/pc-q35-rhel9.6.0": "true",
		"cpu-model.node.kubevirt.io/qemu64":              "true",
		"cpu-model-migration.node.kubevirt.io/qemu64":    "true",
		"host-model-cpu.node.kubevirt.io/qemu64":         "true",
	}
}

// heartbeatAnnotation holds the time at which virt-handler last was alive (kubevirt.io/api core/v1). It is set once
// here; the stand-in of virt-handler keeps it fresh.
const heartbeatAnnotation = "kubevirt.io/heartbeat"

// register makes the Node object, or brings an old one up to date, and declares the node ready. It tries until it
// succeeds or ctx ends.
func (k *Kubelet) register(ctx context.Context) error {
	for {
		err := k.registerOnce(ctx)
		if err == nil {
			k.log.Info("node is ready")
			return nil
		}
		k.log.Warn("cannot register the node, trying again", "error", err)
		select {
		case <-ctx.Done():
			return fmt.Errorf("register node %s: %w", k.node.Name, err)
		case <-time.After(retryInterval):
		}
	}
}

func (k *Kubelet) registerOnce(ctx context.Context) error {
	nodes := k.client.CoreV1().Nodes()
	wanted := k.nodeObject()
	node, err := nodes.Create(ctx, wanted, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"labels": wanted.Labels, "annotations": wanted.Annotations},
		})
		if err != nil {
			return err
		}
		if node, err = nodes.Patch(ctx, wanted.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	// Not by a patch: its merge key of addresses is their type, and there are two of one type.
	node.Status = wanted.Status
	_, err = nodes.UpdateStatus(ctx, node, metav1.UpdateOptions{})
	return err
}

func (k *Kubelet) nodeObject() *corev1.Node {
	labels := map[string]string{
		corev1.LabelHostname: k.node.Name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: runtime.GOARCH,
	}
	for key, value := range KubeVirtLabels() {
		labels[key] = value
	}
	var conditions []corev1.NodeCondition
	for kind, status := range map[corev1.NodeConditionType]corev1.ConditionStatus{
		corev1.NodeReady:          corev1.ConditionTrue,
		corev1.NodeMemoryPressure: corev1.ConditionFalse,
		corev1.NodeDiskPressure:   corev1.ConditionFalse,
		corev1.NodePIDPressure:    corev1.ConditionFalse,
	} {
		conditions = append(conditions, corev1.NodeCondition{
			Type: kind, Status: status, Reason: "KubeletStandIn", LastHeartbeatTime: now(), LastTransitionTime: now(),
		})
	}
	resources := maps.Clone(nodeCapacity)
	maps.Copy(resources, KubeVirtDevices())
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: k.node.Name, Labels: labels,
			Annotations: map[string]string{heartbeatAnnotation: now().UTC().Format(time.RFC3339)},
		},
		Spec: corev1.NodeSpec{
			PodCIDR: k.node.PodNetwork.String(), PodCIDRs: []string{k.node.PodNetwork.String()},
		},
		Status: corev1.NodeStatus{
			Capacity: resources, Allocatable: resources, Conditions: conditions,
			Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: k.node.Address.String()},
				{Type: corev1.NodeInternalIP, Address: k.node.Address6.String()},
				{Type: corev1.NodeHostName, Address: k.node.Name},
			},
			NodeInfo: corev1.NodeSystemInfo{
				KubeletVersion: "v1.37.2-stand-in", ContainerRuntimeVersion: "runc://stand-in",
				OperatingSystem: "linux", Architecture: runtime.GOARCH,
			},
		},
	}
}

// renewLease keeps the node's lease fresh until ctx ends; without it the node would turn unreachable.
func (k *Kubelet) renewLease(ctx context.Context) {
	ticker := time.NewTicker(leaseRenewal)
	defer ticker.Stop()
	for {
		if err := k.renewLeaseOnce(ctx); err != nil && ctx.Err() == nil {
			k.log.Warn("cannot renew the node's lease", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (k *Kubelet) renewLeaseOnce(ctx context.Context) error {
	leases := k.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	spec := coordinationv1.LeaseSpec{
		HolderIdentity: &k.node.Name, LeaseDurationSeconds: new(int32(leaseDuration / time.Second)),
		RenewTime: &metav1.MicroTime{Time: time.Now()},
	}
	lease, err := leases.Get(ctx, k.node.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		lease = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: k.node.Name}, Spec: spec}
		_, err = leases.Create(ctx, lease, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	lease.Spec = spec
	_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	return err
}

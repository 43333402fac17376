package rig

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"floatip.io/floatip/test/rig/lan"
	"floatip.io/floatip/test/rig/process"
)

// nodeDir is the folder of a node's files.
func nodeDir(rig, node string) string { return filepath.Join(rig, node) }

// startNodes starts the kubelet of every node, and gives the cluster volumes.
func (r *Rig) startNodes(ctx context.Context) error {
	if err := r.runtime.prepare(); err != nil {
		return err
	}
	for _, node := range r.LAN.Nodes {
		if err := r.runtime.start(ctx, node); err != nil {
			return fmt.Errorf("%s: %w", node.Name, err)
		}
	}
	return r.provideVolumes(ctx)
}

// volumePath is where a node has its persistent volume.
const volumePath = "/var/lib/rig-volume"

// provideVolumes makes one persistent volume per node, bound to the node by affinity, as a provisioner of local volumes
// would. Anybody may write to it.
func (r *Rig) provideVolumes(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(r.Cluster.RESTConfig())
	if err != nil {
		return err
	}
	for _, node := range r.LAN.Nodes {
		path := r.runtime.path(node.Name, volumePath)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o777); err != nil {
			return err
		}
		if _, err := client.CoreV1().PersistentVolumes().Create(ctx, volume(node), metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("volume of %s: %w", node.Name, err)
		}
	}
	return nil
}

func volume(node lan.Node) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "local-" + node.Name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				HostPath: &corev1.HostPathVolumeSource{Path: volumePath},
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node.Name},
				}}}},
			}},
		},
	}
}

// awaitNodes waits until the scheduler may use every node.
func (r *Rig) awaitNodes(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(r.Cluster.RESTConfig())
	if err != nil {
		return err
	}
	err = process.Wait(ctx, r.opts.Progress, "the nodes", func(ctx context.Context) error {
		for _, n := range r.LAN.Nodes {
			node, err := client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if err := usable(node); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, node := range r.LAN.Nodes {
		if err := r.runtime.settle(ctx, node); err != nil {
			return fmt.Errorf("%s: %w", node.Name, err)
		}
	}
	return nil
}

// usable returns why the scheduler does not use a node yet.
func usable(node *corev1.Node) error {
	if len(node.Spec.Taints) > 0 {
		return fmt.Errorf("%s has the taint %s", node.Name, node.Spec.Taints[0].Key)
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("%s is not ready", node.Name)
}

package virthandler

import (
	"context"
	"encoding/json"
	"log"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	v1 "kubevirt.io/api/core/v1"

	"floatip.io/floatip/test/kubevirt/virthandler/launcher"
)

// heartbeatEvery is well below the five minutes after which virt-controller takes a node for unresponsive
// (pkg/virt-controller/watch/node).
const heartbeatEvery = 30 * time.Second

// heartbeat tells virt-controller that the node takes machines, until ctx is done (pkg/virt-handler/heartbeat). Unlike
// virt-handler it does not take that back at its end: the rig restarts it with machines running.
func (h *Handler) heartbeat(ctx context.Context) {
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		if err := h.beat(ctx); err != nil && ctx.Err() == nil {
			log.Printf("heartbeat of node %s: %v", h.Node, err)
		}
	}, heartbeatEvery)
}

func (h *Handler) beat(ctx context.Context) error {
	now, err := metav1.Now().MarshalJSON()
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"labels": map[string]string{
			v1.NodeSchedulable: "true",
			v1.CPUManager:      "false",
			v1.SupportedMachineTypeLabel + launcher.MachineType: "true",
		},
		"annotations": map[string]json.RawMessage{v1.VirtHandlerHeartbeat: now},
	}})
	if err != nil {
		return err
	}
	_, err = h.client.CoreV1().Nodes().Patch(ctx, h.Node, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	return err
}

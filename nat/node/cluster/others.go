package cluster

import (
	"context"
	"encoding/json"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"floatip.io/floatip"
	"floatip.io/floatip/nat/node"
)

// wantedMachine is a VirtualMachineInstance that runs on another node.
type wantedMachine struct{ uid, namespace, name string }

func askMachine(client rest.Interface) func(context.Context, wantedMachine) (node.Machine, error) {
	return func(ctx context.Context, w wantedMachine) (node.Machine, error) {
		var m machine
		err := client.Get().Namespace(w.namespace).Resource("virtualmachineinstances").Name(w.name).Do(ctx).Into(&m)
		switch {
		case apierrors.IsNotFound(err):
			return node.Machine{}, nil
		case err != nil:
			return node.Machine{}, err
		case string(m.UID) != w.uid:
			return node.Machine{}, nil
		}
		return machineOf(&m), nil
	}
}

// agentOf reads what the agent of a node says about itself. Who may write it may write Nodes: agents, the node's own
// kubelet, and administrators. It returns the zero NodeAgent for a text that is none: a peer of another version is no
// reason to fail.
func agentOf(text string) floatip.NodeAgent {
	var a floatip.NodeAgent
	if json.Unmarshal([]byte(text), &a) != nil {
		return floatip.NodeAgent{}
	}
	return a
}

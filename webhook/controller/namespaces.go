package controller

import (
	"context"
	"fmt"

	"k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
)

// EventHeldOn is on a Namespace that no longer opts in, or does again, while its VMs are what they were: the label
// decides about new VMs only.
const EventHeldOn = "FloatingIPsHeld"

// Namespaces tells the people of a namespace, when it stops to opt in, what its VMs hold on to.
type Namespaces struct {
	Ledger *ipam.Ledger
	Events Events
}

// SetupWithManager watches the labels of namespaces.
func (n *Namespaces) SetupWithManager(mgr ctrl.Manager) error {
	informer, err := mgr.GetCache().GetInformer(context.Background(), metadataOf(namespaceKind))
	if err != nil {
		return fmt.Errorf("watch namespaces: %w", err)
	}
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: n.changed})
	return err
}

func (n *Namespaces) changed(before, after any) {
	old, ok1 := before.(client.Object)
	now, ok2 := after.(client.Object)
	if !ok1 || !ok2 || !optedIn(old) || optedIn(now) || now.GetDeletionTimestamp() != nil {
		return
	}
	held := 0
	for line := range n.Ledger.All() {
		if line.Owner.Namespace == now.GetName() && line.State != ipam.Released {
			held++
		}
	}
	if held == 0 {
		return
	}
	n.Events.WarnNamespace(now.GetName(), EventHeldOn, fmt.Sprintf(
		"the namespace no longer has the label %s=true: new VMs get no floating IP; %d stay held by VMs that have them, "+
			"until these are deleted, and are not carried by instances and pods that start from now on", floatip.LabelEnabled, held))
}

func optedIn(namespace client.Object) bool {
	return namespace.GetLabels()[floatip.LabelEnabled] == "true"
}

package story

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
)

// Ledger runs "floatip-webhook ledger args" in the webhook's container, as a person does with kubectl exec.
func (s *Story) Ledger(ctx context.Context, args ...string) (string, error) {
	return s.InWebhook(ctx, append([]string{"/floatip-webhook", "ledger"}, args...)...)
}

// InWebhook runs a command in the webhook's container.
func (s *Story) InWebhook(ctx context.Context, command ...string) (string, error) {
	pods, err := s.webhookPods(ctx)
	if err != nil {
		return "", err
	}
	running := pods[:0]
	for _, pod := range pods {
		if pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil {
			running = append(running, pod)
		}
	}
	if len(running) != 1 {
		return "", fmt.Errorf("%d pods of the webhook run, want 1", len(running))
	}
	return s.Rig.Exec(ctx, &running[0], running[0].Spec.Containers[0].Name, command...)
}

// LoseLedger deletes the ledger's file, as long as the webhook is down.
func (s *Story) LoseLedger() error {
	path, err := s.ledgerFile()
	if err != nil {
		return err
	}
	return os.Remove(path)
}

// RestoreLedger puts a copy of the ledger, as "ledger backup" wrote it, in the place of the file.
func (s *Story) RestoreLedger(copied string) error {
	path, err := s.ledgerFile()
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(copied), 0o600) // owner and mode stay
}

// ledgerFile is where this machine has the ledger.
func (s *Story) ledgerFile() (string, error) {
	var found []string
	for _, node := range s.Rig.LAN.Nodes {
		path := filepath.Join(s.Rig.VolumePath(node.Name), "ledger.db")
		if _, err := os.Stat(path); err == nil {
			found = append(found, path)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("the ledger lies on %d volumes, want 1: %v", len(found), found)
	}
	return found[0], nil
}

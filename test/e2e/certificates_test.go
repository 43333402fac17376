package e2e

import (
	"context"
	"errors"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

// certificatesHeal takes away one after the other what the API server checks the webhook's certificate with. Each is
// written again without anybody's help, and the authority stays the same.
func certificatesHeal(t *testing.T, s *story.Story) {
	ctx := bounded(t)
	var secret corev1.Secret
	var config admissionregistrationv1.MutatingWebhookConfiguration
	read := func(ctx context.Context) error {
		return errors.Join(
			s.Client.Get(ctx, client.ObjectKey{Namespace: systemNamespace, Name: "floatip-webhook-ca"}, &secret),
			s.Client.Get(ctx, client.ObjectKey{Name: "webhook.floatip.io"}, &config))
	}
	if err := read(ctx); err != nil {
		t.Fatal(err)
	}
	authority := string(secret.Data["ca.crt"])
	for _, tc := range []struct {
		name string
		harm func() error
	}{
		{"the Secret is deleted", func() error { return s.Client.Delete(ctx, &secret) }},
		{"the Secret is emptied", func() error { secret.Data = nil; return s.Client.Update(ctx, &secret) }},
		{"a caBundle is emptied", func() error {
			config.Webhooks[0].ClientConfig.CABundle = nil
			return s.Client.Update(ctx, &config)
		}},
	} {
		if err := tc.harm(); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		err := process.Wait(ctx, nil, "recovery after: "+tc.name, func(ctx context.Context) error {
			if err := read(ctx); err != nil {
				return err
			}
			if string(secret.Data["ca.crt"]) != authority {
				return errors.New("the Secret has another authority")
			}
			for _, hook := range config.Webhooks {
				if string(hook.ClientConfig.CABundle) != authority {
					return errors.New("the caBundle of " + hook.Name + " differs")
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := createVM(ctx, s, story.Namespace, "after-the-harm", nil); err != nil {
		t.Error(err)
	}
}

{{- define "perdure.name" -}}
{{- if contains "perdure" .Release.Name }}{{ .Release.Name | trunc 48 | trimSuffix "-" }}{{ else }}{{ printf "%s-perdure" .Release.Name | trunc 48 | trimSuffix "-" }}{{ end -}}
{{- end -}}
{{- define "perdure.cluster.name" -}}
{{- $name := include "perdure.name" . }}
{{- if eq $name .Release.Namespace }}{{ $name }}{{ else }}{{ $name }}-{{ .Release.Namespace }}{{ end -}}
{{- end -}}
{{- define "perdure.selector" -}}
app.kubernetes.io/name: perdure
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}
{{- define "perdure.labels" -}}
app.kubernetes.io/name: perdure
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}
{{- /* An image of the release by its name: below image.registry, or image.repository for all. */ -}}
{{- define "perdure.image" -}}
{{- $values := .root.Values.image -}}
{{- $registry := ternary "" (printf "%s/" (trimSuffix "/" $values.registry)) (empty $values.registry) -}}
{{ $values.repository | default (printf "%s%s" $registry .name) }}:{{ $values.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- define "perdure.operator.image" -}}
{{ .Values.operator.image | default (include "perdure.image" (dict "root" . "name" "perdure-operator")) }}
{{- end -}}
{{- define "perdure.attempts.image" -}}
{{ .Values.attempts.image | default (include "perdure.image" (dict "root" . "name" "perdure")) }}
{{- end -}}
{{- define "perdure.account" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "perdure.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end -}}
{{- end -}}
{{- define "perdure.attempt.account" -}}
{{- if .Values.attempts.serviceAccount.name }}{{ .Values.attempts.serviceAccount.name }}{{ else if .Values.attempts.serviceAccount.create }}{{ include "perdure.name" . }}-attempt{{ end -}}
{{- end -}}
{{- /* What `perdure operator --defaults` gets. */ -}}
{{- define "perdure.defaults" -}}
{{- $pod := dict "imagePullPolicy" (.Values.attempts.pod.imagePullPolicy | default .Values.image.pullPolicy) -}}
{{- with concat .Values.imagePullSecrets .Values.attempts.pod.imagePullSecrets | uniq }}{{ $_ := set $pod "imagePullSecrets" . }}{{ end -}}
{{- range $name, $value := omit .Values.attempts.pod "imagePullPolicy" "imagePullSecrets" }}{{ if $value }}{{ $_ := set $pod $name $value }}{{ end }}{{ end -}}
{{- $workspace := dict -}}
{{- range $name, $value := omit .Values.attempts.workspace "checkpointsSecretRef" }}{{ if $value }}{{ $_ := set $workspace $name $value }}{{ end }}{{ end -}}
{{- with .Values.attempts.workspace.checkpointsSecretRef }}{{ if .name }}{{ $_ := set $workspace "checkpointsSecretRef" . }}{{ end }}{{ end -}}
{{- $defaults := dict "pod" $pod "workspace" $workspace -}}
{{- if not (kindIs "invalid" .Values.attempts.ttlSecondsAfterFinished) }}{{ $_ := set $defaults "ttlSecondsAfterFinished" (int64 .Values.attempts.ttlSecondsAfterFinished) }}{{ end -}}
{{ toJson $defaults }}
{{- end -}}
{{- define "perdure.attempts.policy" -}}
{{- $policy := .Values.networkPolicy -}}
podSelector:
  matchLabels:
    app.kubernetes.io/managed-by: perdure
  matchExpressions:
    - {key: perdure.dev/taskrun-uid, operator: Exists}
policyTypes: [Ingress, Egress]
egress:
  - ports:
      {{- range $policy.dns.ports }}
      - {port: {{ . }}, protocol: UDP}
      - {port: {{ . }}, protocol: TCP}
      {{- end }}
  - ports:
      {{- range $policy.attempts.ports }}
      - {port: {{ . }}, protocol: TCP}
      {{- end }}
    to:
      {{- range $cidr := $policy.attempts.cidrs }}
      - ipBlock:
          cidr: {{ $cidr | quote }}
          {{- $family := contains ":" $cidr }}
          {{- $except := list }}
          {{- range $policy.attempts.except }}
          {{- if eq (contains ":" .) $family }}{{ $except = append $except . }}{{ end }}
          {{- end }}
          {{- with $except }}
          except: {{ toJson . }}
          {{- end }}
      {{- end }}
  {{- with $policy.attempts.egress }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
{{- /* Of the operator, and of the check that `helm test` makes: the same flags need the same rights. */ -}}
{{- define "perdure.arguments" -}}
{{- if .Values.clusterWide }}
- --all-namespaces
{{- else }}
- --namespace={{ .Release.Namespace }}
{{- end }}
- --port={{ .Values.metrics.port }}
- --log-format={{ .Values.operator.logFormat }}
- --image={{ include "perdure.attempts.image" . }}
{{- with include "perdure.attempt.account" . }}
- --service-account={{ . }}
{{- end }}
- {{ printf "--defaults=%s" (include "perdure.defaults" .) | quote }}
{{- range .Values.attempts.repositories.httpHosts }}
- --http-host={{ . }}
{{- end }}
{{- range .Values.attempts.repositories.sshHosts }}
- --ssh-host={{ . }}
{{- end }}
{{- if .Values.clusterWide }}
{{- if .Values.attempts.serviceAccount.create }}
- --make-service-account
{{- end }}
{{- if .Values.networkPolicy.enabled }}
- {{ printf "--network-policy=%s" (include "perdure.attempts.policy" . | fromYaml | toJson) | quote }}
{{- end }}
{{- end }}
{{- if .Values.operator.readLogs }}
- --read-logs
{{- end }}
{{- end -}}
{{- define "perdure.test.limits" -}}
resources:
  requests: {cpu: 50m, memory: 128Mi}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}
